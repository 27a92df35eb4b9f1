"""Vocabularies in all the ways in which people keep them."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from support.checkpoints import convert, read_manifest, save, state_dict
from unrolled.v1 import model_pb2
from unrolled_export.errors import VocabularyError
from unrolled_export.vocabulary import make_vocabulary, read_vocabulary

TOKENS = ("a", "é", "\n", "中", "\t", "😀", '"', "\\", " ", "7")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "value",
    [
        list(TOKENS),
        {token: index for index, token in enumerate(TOKENS)},
        {str(index): token for index, token in enumerate(TOKENS)},
        {token: index for index, token in reversed(list(enumerate(TOKENS)))},
    ],
)
def test_json(value: object, tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, "v.json", json.dumps(value))) == TOKENS


def test_digits_are_tokens_where_the_values_are_ids(tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, "v.json", '{"1": 0, "0": 1}')) == ("1", "0")


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_lines_of_text(line_break: str, end: str, tmp_path: Path) -> None:
    lines = [{"\n": "\\n", "\t": "\\t"}.get(token, token) for token in TOKENS]
    text = line_break.join(lines) + (line_break if end else "")
    assert read_vocabulary(write(tmp_path, "v.txt", text)) == TOKENS


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    tokens = ("\x0b", "\x0c", "\u2028", "x")
    assert read_vocabulary(write(tmp_path, "v.txt", "\n".join(tokens))) == tokens


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("v.json", "{", "not JSON"),
        ("v.json", "[" * 100_000, "not JSON"),
        ("v.json", "3", "neither a list of tokens nor a map"),
        ("v.json", '["a", 1]', "token 1 is not a string but 1"),
        ("v.json", '{"a": 0, "b": 0}', "two tokens of id 0"),
        ("v.json", '{"a": 0, "a": 1, "b": 3}', "no token of id 2"),
        ("v.json", '{"a": 1.5}', "'a': 1.5 is not a token and an id"),
        ("v.json", '{"a": true}', "'a': True is not a token and an id"),
        ("v.json", '{"a": "b"}', "'a': 'b' is not a token and an id"),
        ("v.json", '{"a": -1}', "no token of id 0"),
        ("v.json", "[]", "the vocabulary is empty"),
        ("v.json", "{}", "the vocabulary is empty"),
        ("v.json", '["a", ""]', "token 1 is empty"),
        ("v.json", '["a", "b", "a"]', "tokens 0 and 2 are both 'a'"),
        ("v.json", '["a", "the"]', "token 1 is 'the': tokens of more than one character"),
        ("v.json", r'["\ud800"]', "token 0 is half of a surrogate pair"),
        ("v.txt", "", "the vocabulary is empty"),
        ("v.txt", "a\n\nb\n", "token 1 is empty"),
        ("v.txt", "a\nend\n", "token 1 is 'end': tokens of more than one character"),
    ],
)
def test_files_that_hold_no_vocabulary(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(VocabularyError) as refused:
        make_vocabulary(read_vocabulary(path), path)
    assert str(refused.value).startswith(f"{path}: ")
    assert expected in str(refused.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(VocabularyError, match="not UTF-8 at byte 2"):
        read_vocabulary(tmp_path / "v.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", 0), ("\\n", 2), ("\n", 2), ("\\t", 4), ("\\", 7), ("#9", 9), ("7", 9), ("#", 10)],
)
def test_start_and_end_tokens(text: str, expected: int) -> None:
    vocabulary = make_vocabulary((*TOKENS, "#"), Path("v"), text, [text, "#1", text])
    assert vocabulary.start == expected
    assert vocabulary.end == tuple(sorted({1, expected}))


@pytest.mark.parametrize("text", ["z", "", "#11", "#-1", "#x", "#" + "9" * 5000])
def test_tokens_outside_the_vocabulary(text: str) -> None:
    with pytest.raises(VocabularyError, match=r"start token .*: not in the vocabulary of 10"):
        make_vocabulary(TOKENS, Path("v"), text)


def test_the_manifest_has_bytes_in_id_order(tmp_path: Path) -> None:
    tokens = list(string.printable)
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens)), tokens)
    vocabulary = read_manifest(convert(arguments, tmp_path / "models")).vocabulary
    assert vocabulary.kind == model_pb2.Vocabulary.KIND_CHARACTER
    assert vocabulary.size == len(tokens)
    assert list(vocabulary.tokens) == [token.encode() for token in tokens]
    assert not vocabulary.HasField("unknown_token")
