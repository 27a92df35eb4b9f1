"""Vocabularies in files of text: columns of tokens and ids or counts, and all in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.checkpoints import convert, read_manifest, refusal, save, state_dict
from unrolled.v1 import model_pb2
from unrolled_export.errors import SettingNeeded, VocabularyError
from unrolled_export.listed_vocabulary import listed_vocabulary
from unrolled_export.vocabulary import Kind
from unrolled_export.vocabulary_files import read_vocabulary

Capture = pytest.CaptureFixture[str]

WORDS = ("<unk>", "<eos>", "the", "of", "and", "to", "in", "was", "for", "that", "1990", ",")
CHARACTERS = ("\n", " ", "\t", "!", '"', "0", "7", "a", "b", "é", "中", "\\")
ALPHABET = "\n !'abcdefghij"


def columns(tokens: Sequence[str], first: int = 0, separator: str = "\t", end: str = "\n") -> str:
    """As a loop over `enumerate(tokens)` writes them, in an order that is not that of the ids."""
    spelled = {"\n": "\\n"}
    lines = [f"{spelled.get(t, t)}{separator}{i}" for i, t in enumerate(tokens, first)]
    random.Random(3).shuffle(lines)
    return end.join(lines) + end


def write(folder: Path, text: str, name: str = "v.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tokens", [WORDS, CHARACTERS])
def test_tokens_and_ids(tokens: tuple[str, ...], end: str, tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, columns(tokens, end=end))) == tokens


def test_ids_from_one(tmp_path: Path) -> None:
    path = write(tmp_path, columns(WORDS, 1))
    assert read_vocabulary(path, len(WORDS)) == WORDS
    assert read_vocabulary(path, len(WORDS) + 1) == ("<pad>", *WORDS)


def test_ids_in_the_manifest(tmp_path: Path) -> None:
    vocabulary_file = write(tmp_path, columns(WORDS))
    arguments = save(tmp_path, state_dict(vocabulary=len(WORDS)))
    folder = convert([*arguments, "--vocab", str(vocabulary_file)], tmp_path / "models")
    vocabulary = read_manifest(folder).vocabulary
    assert vocabulary.kind == model_pb2.Vocabulary.KIND_WORD
    assert [token.decode() for token in vocabulary.tokens] == ["<unk>", "\n", *WORDS[2:]]


def counted(separator: str) -> str:
    """As fairseq's dict.txt and word2vec's vocabularies are: most frequent words first."""
    return "".join(f"{word}{separator}{1000 - 7 * i}\n" for i, word in enumerate(WORDS))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (counted(" "), "line 1: '<unk> 1000' has white space in it"),
        (counted("\t"), r"line 1: '<unk>\t1000' has white space in it"),
        (counted(","), "line 1: '<unk>,1000' has two columns"),
        ("token,count\n" + counted(","), "line 2: '<unk>,1000' has two columns"),
        ("token\tid\n" + columns(WORDS), "has white space in it"),
        (columns(WORDS, separator=" "), "has white space in it"),
        (columns(WORDS, 2), "has white space in it"),
        (columns((*WORDS[:-1], "")), "is empty"),
        (columns(WORDS).replace("\t3\n", "\t4\n"), "has white space in it"),
        ("".join(f"{i}\t{word}\n" for i, word in enumerate(WORDS)), "has white space in it"),
    ],
)
@pytest.mark.parametrize("kind", ["word", "character"])
def test_tables_are_no_lists(
    text: str, problem: str, kind: str, tmp_path: Path, capsys: Capture
) -> None:
    """Whatever the user says that the tokens are, the count or id is no part of them."""
    path = write(tmp_path, text)
    arguments = save(tmp_path, state_dict(vocabulary=len(WORDS)))
    given = [*arguments, "--vocab", str(path), "--set", f"vocabulary={kind}"]
    line = refusal(given, tmp_path / "models", capsys)
    assert f"{path}: " in line
    assert problem in line


@pytest.mark.parametrize("tokens", [CHARACTERS, (" 1", " 2", "\t3", "a"), ("a", "b 1", "c")])
def test_white_space_that_is_a_token(tokens: tuple[str, ...], tmp_path: Path) -> None:
    lines = "\n".join({"\n": "\\n", "\t": "\\t"}.get(token, token) for token in tokens)
    assert read_vocabulary(write(tmp_path, lines), len(tokens)) == tokens


@pytest.mark.parametrize("token", ["New York", "the\tof", "the ", " the"])
def test_words_have_no_white_space(token: str) -> None:
    tokens = (*WORDS, token, " ", "\t")
    with pytest.raises(SettingNeeded) as asked:
        listed_vocabulary(tokens, Path("v"))
    assert repr(token) in str(asked.value)
    assert asked.value.choices == ("character",)
    with pytest.raises(VocabularyError, match=f"token {len(WORDS)} is .* no white space"):
        listed_vocabulary(tokens, Path("v"), kind=Kind.WORD)
    assert listed_vocabulary(tokens, Path("v"), kind=Kind.CHARACTER).spellings == tokens


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_characters_of_one_text(end: str, tmp_path: Path) -> None:
    """As `"".join(sorted(set(text)))` is written: with a line feed that is a character itself."""
    path = write(tmp_path, ALPHABET + end)
    assert read_vocabulary(path, len(ALPHABET)) == tuple(ALPHABET)


@pytest.mark.parametrize("name", ["v.json", "v.txt"])
def test_a_text_in_json(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(ALPHABET), name)
    assert read_vocabulary(path, len(ALPHABET)) == tuple(ALPHABET)
    with pytest.raises(VocabularyError, match="a text of 14 characters, 14 of them different"):
        read_vocabulary(path, len(ALPHABET) + 1)


def test_a_line_end_that_may_have_been_a_token(tmp_path: Path, capsys: Capture) -> None:
    """Which one it was, the file does not tell."""
    path = write(tmp_path, ALPHABET.replace("\n", "") + "\n")
    arguments = save(tmp_path, state_dict(vocabulary=len(ALPHABET)))
    line = refusal([*arguments, "--vocab", str(path)], tmp_path / "models", capsys)
    assert "1 token, of 13 characters, but the weights of" in line


def test_lines_come_before_characters(tmp_path: Path) -> None:
    text = "\n".join("abcdefghij")
    assert read_vocabulary(write(tmp_path, text), 10) == tuple("abcdefghij")
    assert read_vocabulary(write(tmp_path, "abcdefgh"), 8) == ("abcdefgh",)


@pytest.mark.parametrize("kind", [[], ["--set", "vocabulary=word"]])
def test_the_count_comes_first(kind: list[str], tmp_path: Path, capsys: Capture) -> None:
    """Whether the tokens of a wrong list are words, nobody needs to know."""
    arguments = save(tmp_path, state_dict(vocabulary=9), ["token", *WORDS[2:], "New York"])
    line = refusal([*arguments, *kind], tmp_path / "models", capsys)
    assert line.endswith(f"12 tokens, but the weights of {arguments[0]} have 9")
