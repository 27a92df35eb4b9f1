"""Sealed messages and the files that their keys come from."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sealed import SECRETS, key_file, opened_by_hand, sealed_by_hand
from unrolled_server.files import FileError
from unrolled_server.sealing import OVERHEAD, BrokenSeal, Key, Sealer, sealer_recipe

GOOD = base64.b64encode(SECRETS["a"]).decode()
OTHER = base64.b64encode(SECRETS["b"]).decode()
FORM = b"a form\n"


def keys(*ids: str) -> Sealer:
    return Sealer([Key(name.encode(), SECRETS[name]) for name in ids])


def read_sealer(path: Path) -> Sealer:
    """The keys of a file."""
    return sealer_recipe(path).read().value


def opens(sealer: Sealer, message: bytes, form: bytes = FORM) -> bool:
    try:
        sealer.open(form, message)
    except BrokenSeal:
        return False
    return True


@given(form=st.binary(max_size=30), body=st.binary(max_size=300))
def test_a_message_is_laid_out_as_documented(form: bytes, body: bytes) -> None:
    sealer = keys("a", "b")
    message = sealer.seal(form, body)
    assert opened_by_hand(form, message) == body
    assert len(message) == len(form) + 1 + len("a") + 12 + len(body) + 16
    assert sealer.open(form, sealed_by_hand(form, "a", body)) == body


def test_the_first_key_seals_and_all_open() -> None:
    before, during, after = keys("a"), keys("b", "a"), keys("b")
    old, new = before.seal(FORM, b"old"), during.seal(FORM, b"new")
    assert (during.open(FORM, old), during.open(FORM, new)) == (b"old", b"new")
    assert after.open(FORM, new) == b"new"
    assert not opens(after, old)
    assert not opens(before, new)


def test_no_two_messages_are_alike() -> None:
    sealer = keys("a")
    assert len({sealer.seal(FORM, b"same") for _ in range(100)}) == 100


def test_a_key_of_the_same_name_is_not_the_same_key() -> None:
    stranger = Sealer([Key(b"a", SECRETS["b"])])
    assert not opens(keys("a"), stranger.seal(FORM, b"body"))


def test_a_message_of_another_form_is_refused() -> None:
    sealer = keys("a")
    message = sealer.seal(FORM, b"body")
    assert not opens(sealer, message, b"b form\n")
    assert not opens(sealer, b"b" + message[1:], b"b form\n")


def test_the_name_of_the_key_is_authenticated() -> None:
    twins = Sealer([Key(b"a", SECRETS["a"]), Key(b"b", SECRETS["a"])])
    message = twins.seal(FORM, b"body")
    renamed = message.replace(FORM + b"\1a", FORM + b"\1b")
    assert opens(twins, message)
    assert renamed != message
    assert not opens(twins, renamed)


@given(st.binary(max_size=100))
def test_whatever_else_comes_is_refused(message: bytes) -> None:
    sealer = keys("a")
    assert not opens(sealer, message)
    assert not opens(sealer, FORM + message)
    assert not opens(sealer, FORM + b"\1a" + message)


def test_the_longest_name_makes_the_longest_message(tmp_path: Path) -> None:
    file = key_file(tmp_path / "keys")
    file.write_text(f"{'k' * 32} {GOOD}")
    message = read_sealer(file).seal(FORM, b"body")
    assert len(message) == len(FORM) + len(b"body") + OVERHEAD


# Files of keys


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_keys(tmp_path: Path, end: str) -> None:
    file = key_file(tmp_path / "keys")
    lines = ["# since May", "", f"  a\t{GOOD}  ", "   # until May", f"b {OTHER} # new"]
    file.write_bytes(end.join(lines).encode())
    sealer = read_sealer(file)
    assert opened_by_hand(FORM, sealer.seal(FORM, b"body")) == b"body"
    assert sealer.seal(FORM, b"").startswith(FORM + b"\1a")
    assert sealer.open(FORM, sealed_by_hand(FORM, "b", b"older")) == b"older"


SHORT, LONG = (base64.b64encode(bytes(size)).decode() for size in (31, 33))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (f"a {GOOD}\nb\n", 2, "two words, not 1"),
        (f"\n\na {GOOD} c\n", 3, "two words, not 3"),
        (f"a {SHORT}", 1, "31 bytes, not 32"),
        (f"a {LONG}", 1, "33 bytes, not 32"),
        (f"a {GOOD[:-1]}", 1, "not base64"),
        (f"a -{GOOD[1:]}", 1, "not base64"),
        (f"a {GOOD}\n# c\nb {OTHER}\na {LONG[:4]}{OTHER[4:]}", 4, "second key with the id a"),
        (f"a {GOOD}\nb {GOOD}", 2, "b is the same key"),
        (f"{'k' * 33} {GOOD}", 1, "1 to 32 ASCII letters"),
        (f"ä {GOOD}", 1, "1 to 32 ASCII letters"),
        (f"a/b {GOOD}", 1, "1 to 32 ASCII letters"),
        ("a \x80\xff", 1, "not base64"),
    ],
)
def test_an_error_names_file_and_line_and_no_secret(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    file = key_file(tmp_path / "keys")
    file.write_text(text)
    with pytest.raises(FileError) as caught:
        read_sealer(file)
    message = str(caught.value)
    assert message.startswith(f"--seal-key-file {file}: line {line}: ")
    assert problem in message
    assert not any(secret[:8] in message for secret in (GOOD, OTHER, SHORT, LONG))


@pytest.mark.parametrize("text", ["", "\n \n", "# a key\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    file = key_file(tmp_path / "keys")
    file.write_text(text)
    with pytest.raises(FileError, match=f"^--seal-key-file {file}: holds no key"):
        read_sealer(file)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o646])
def test_a_file_for_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path / "keys", "a")
    file.chmod(mode)
    with pytest.raises(FileError, match=f"^--seal-key-file {file}: other users .*chmod"):
        read_sealer(file)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o660])
def test_a_file_for_owner_and_group_is_read(tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path / "keys", "a")
    file.chmod(mode)
    assert opens(read_sealer(file), sealed_by_hand(FORM, "a", b"body"))


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"^--seal-key-file {tmp_path / 'keys'}: No such file"):
        read_sealer(tmp_path / "keys")


def test_a_secret_does_not_show() -> None:
    assert "aaaa" not in repr(Key(b"b", SECRETS["a"]))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_a_key_of_openssl_is_a_key(tmp_path: Path) -> None:
    """As deploy/README.md has it."""
    file = tmp_path / "seal.keys"
    command = f'umask 077; echo "$(date +%F) $(openssl rand -base64 32)" > {file}'
    subprocess.run(["bash", "-c", command], check=True, timeout=60)
    sealer = read_sealer(file)
    assert sealer.open(FORM, sealer.seal(FORM, b"body")) == b"body"


def test_a_server_does_not_start_with_a_bad_file(tmp_path: Path) -> None:
    file = key_file(tmp_path / "keys")
    file.write_text(f"a {SHORT}")
    ended = subprocess.run(
        [sys.executable, "-m", "unrolled_server", "--models", str(tmp_path)],
        env={**os.environ, "UNROLLED_SEAL_KEY_FILE": str(file)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        ended.stderr
        == f"unrolled-server: --seal-key-file {file}: line 1: the key has 31 bytes, not 32\n"
    )
