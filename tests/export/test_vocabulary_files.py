"""Vocabularies in all the ways in which people keep them."""

from __future__ import annotations

import collections
import io
import json
import pickle
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from support.checkpoints import convert, read_manifest, refusal, save, state_dict
from unrolled.v1 import model_pb2
from unrolled_export.errors import CheckpointError, PickleNeeded, SettingNeeded, VocabularyError
from unrolled_export.listed_vocabulary import listed_vocabulary
from unrolled_export.tokenizer_files import TokenizerFile
from unrolled_export.vocabulary import Kind
from unrolled_export.vocabulary_files import read_vocabulary

TOKENS = ("a", "é", "\n", "中", "\t", "😀", '"', "\\", " ", "7")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def listed(path: Path) -> tuple[str, ...]:
    """The tokens of a file that is no tokenizer."""
    tokens = read_vocabulary(path)
    assert not isinstance(tokens, TokenizerFile)
    return tokens


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


@pytest.mark.parametrize(
    "value",
    [
        {"itos": list(TOKENS), "specials": ["a"]},
        {"stoi": {token: index for index, token in enumerate(TOKENS)}, "min_freq": 2},
        {"data": 1, "vocab": {"idx_to_token": {str(i): token for i, token in enumerate(TOKENS)}}},
    ],
)
def test_json_of_several_things(value: object, tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, "v.json", json.dumps(value))) == TOKENS


@pytest.mark.parametrize(("size", "first"), [(len(TOKENS), ()), (len(TOKENS) + 1, ("<pad>",))])
def test_ids_from_one(size: int, first: tuple[str, ...], tmp_path: Path) -> None:
    """As Lua counts, and as Keras does beside its padding."""
    ids = {token: index for index, token in enumerate(TOKENS, 1)}
    path = write(tmp_path, "v.json", json.dumps(ids))
    assert read_vocabulary(path, size) == (*first, *TOKENS)
    with pytest.raises(VocabularyError, match="no token of id 0"):
        read_vocabulary(path, size + 2)


def test_content_counts_and_the_name_does_not(tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, "v.vocab", json.dumps(TOKENS))) == TOKENS
    brackets = ("[PAD]", "[UNK]", "{", "]")
    assert read_vocabulary(write(tmp_path, "v.txt", "\n".join(brackets))) == brackets
    ends_like_a_pickle = ("(", ")", ".")
    assert read_vocabulary(write(tmp_path, "w.txt", "\n".join(ends_like_a_pickle))) == (
        ends_like_a_pickle
    )


IDS = {token: index for index, token in enumerate(TOKENS)}
PICKLED: dict[str, Any] = {
    "list": list(TOKENS),
    "tuple": TOKENS,
    "map": IDS,
    "map-of-numpy": {token: np.int64(index) for token, index in IDS.items()},
    "reversed": {index: token for token, index in IDS.items()},
    "ordered": collections.OrderedDict(IDS),
    "both": (list(TOKENS), IDS),
    "array": np.array(TOKENS),
    "nested": {"char2idx": IDS, "epoch": 3},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PICKLED)
def test_pickles(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "itos.pkl"
    path.write_bytes(pickle.dumps(PICKLED[name], protocol))
    assert read_vocabulary(path) == TOKENS


class Dictionary:
    """As word_language_model has one."""

    def __init__(self) -> None:
        self.word2idx = dict(IDS)
        self.idx2word = list(TOKENS)


def test_a_pickled_object_needs_permission(tmp_path: Path) -> None:
    path = tmp_path / "dictionary.pkl"
    path.write_bytes(pickle.dumps(Dictionary()))
    with pytest.raises(PickleNeeded, match=r"dictionary\.pkl: .*\.Dictionary"):
        read_vocabulary(path)
    assert read_vocabulary(path, allow_pickle=True) == TOKENS


class Corpus:
    """As word_language_model has one: the texts as tensors beside the dictionary."""

    def __init__(self) -> None:
        self.dictionary = Dictionary()
        self.train = torch.arange(30) % 7


class Vocabulary:
    """As REINVENT has one: both directions in one map."""

    def __init__(self) -> None:
        self._tokens = IDS | dict(enumerate(TOKENS))
        self._current_id = len(TOKENS)


@pytest.mark.parametrize("form", ["pickle", "archive", "legacy"])
@pytest.mark.parametrize("kind", [Dictionary, Corpus, Vocabulary])
def test_objects_in_files_of_any_form(
    kind: Callable[[], object], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "vocabulary"
    if form == "pickle":
        path.write_bytes(pickle.dumps(kind()))
    else:
        torch.save(kind(), path, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(PickleNeeded):
        read_vocabulary(path, len(TOKENS))
    assert read_vocabulary(path, len(TOKENS), allow_pickle=True) == TOKENS


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", PICKLED)
def test_files_of_torch(name: str, archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "vocab.pt"
    torch.save(PICKLED[name], path, _use_new_zipfile_serialization=archive)
    assert read_vocabulary(path, len(TOKENS)) == TOKENS


def test_a_corpus_of_another_size(tmp_path: Path) -> None:
    """The tokens are read all the same, so that the message counts them."""
    path = tmp_path / "corpus.pt"
    torch.save(Corpus(), path)
    assert read_vocabulary(path, len(TOKENS) + 3, allow_pickle=True) == TOKENS


@pytest.mark.parametrize("kind", ["<U9", ">U9"])
def test_arrays_of_texts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.npy"
    np.save(path, np.array(TOKENS, dtype=kind))
    assert read_vocabulary(path) == TOKENS
    np.save(path, np.array([b"a", "é".encode()]))
    assert read_vocabulary(path) == ("a", "é")


def test_arrays_that_are_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocab.npy"
    for other in (np.zeros(3), np.array([["a"]]), np.array(["a", None], dtype=object)):
        np.save(path, other)
        with pytest.raises(VocabularyError, match=r"vocab\.npy: not an array of texts"):
            read_vocabulary(path)
    np.save(path, np.array(TOKENS))
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-4] + b"\xff" * 4, content.replace(b"<U", b"<U9")):
        path.write_bytes(damaged)
        with pytest.raises(VocabularyError, match=r"vocab\.npy: "):
            read_vocabulary(path)


def test_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = save(tmp_path, state_dict())
    line = refusal([*arguments, "--vocab", str(tmp_path)], tmp_path / "models", capsys)
    assert line.endswith(f"{tmp_path}: a folder, but a vocabulary is a file")
    missing = tmp_path / "nothing.json"
    line = refusal([*arguments, "--vocab", str(missing)], tmp_path / "models", capsys)
    assert line.endswith(f"{missing}: no such file")


def test_bytes_are_256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = save(tmp_path, state_dict(vocabulary=40))
    line = refusal([*arguments, "--set", "vocabulary=byte"], tmp_path / "models", capsys)
    assert "means all 256 bytes, but the weights have 40 tokens" in line


class Hostile:
    """Would leave a file behind if the pickle were loaded in the usual way."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._mark), "w")


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_hostile_pickle_is_refused_and_not_run(allow_pickle: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "itos.pkl"
    path.write_bytes(pickle.dumps(["a", Hostile(mark)]))
    with pytest.raises(CheckpointError, match=r"itos\.pkl: "):
        read_vocabulary(path, allow_pickle=allow_pickle)
    assert not mark.exists()


def test_every_cut_of_a_pickle_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "itos.pkl", pickle.dumps(IDS)
    for end in range(1, len(content)):
        path.write_bytes(content[:end])
        with pytest.raises((CheckpointError, VocabularyError), match=r"itos\.pkl: "):
            listed_vocabulary(listed(path), path)


WORDS = ("the", "of", "and", "to", "in", "was", "for", "that", "with", "as", "on", "by", "from")
LETTER_PAIRS = tuple(f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij")
LATIN = tuple(map(chr, range(256)))
ESCAPED = tuple(bytes([value]).decode(errors="surrogateescape") for value in range(256))
TORCH_RNN = tuple(chr(value) if value < 128 else f"[{value}]" for value in range(256))
SPELLED = tuple(f"<0x{value:02X}>" for value in range(256))
EVERY_BYTE = tuple(bytes([value]) for value in range(256))
SMILES = ("<pad>", "C", "c", "N", "Cl", "Br", "(", ")", "[nH]", "=", "%10", "@@")


@pytest.mark.parametrize(
    ("tokens", "kind", "unknown"),
    [
        (TOKENS, Kind.CHARACTER, None),
        (("<unk>", "a", "b"), Kind.CHARACTER, 0),
        (("<pad>", "<s>", "a", "b", "c"), Kind.CHARACTER, None),
        (("[PAD]", "[START]", "[C]", "[=Branch1]", "[N+1]"), Kind.CHARACTER, None),
        (SMILES, Kind.CHARACTER, None),
        (("Al", "Cl", "se", "C", "c", "G", "E"), Kind.CHARACTER, None),
        (("a", "\r\n", " "), Kind.CHARACTER, None),
        (("<unk>", "<eos>", *WORDS, ",", "1990", "'s"), Kind.WORD, 0),
        (("xxpad", "xxunk", "xxbos", *WORDS, "\n"), Kind.WORD, 1),
        (("<s>", "</s>", "UNK", *WORDS), Kind.WORD, 2),
        (tuple(f"{word}{n}" for word in WORDS for n in LETTER_PAIRS), Kind.WORD, None),
        (LATIN, Kind.BYTE, None),
        (ESCAPED, Kind.BYTE, None),
        (TORCH_RNN, Kind.BYTE, None),
        (SPELLED, Kind.BYTE, None),
        (("a", "\udcc3", "\udca9", "[200]"), Kind.BYTE, None),
    ],
)
def test_what_tokens_are(tokens: Sequence[str], kind: Kind, unknown: int | None) -> None:
    vocabulary = listed_vocabulary(tokens, Path("v"))
    assert (vocabulary.kind, vocabulary.unknown) == (kind, unknown)
    assert vocabulary.size == len(tokens)
    assert vocabulary.joiner == (" " if kind is Kind.WORD else "")


@pytest.mark.parametrize(
    "tokens", [WORDS, ("a", "the"), ("<unk>", *WORDS, " "), ("<unk>", "note_60", "wait_4")]
)
def test_what_cannot_be_told_is_asked_for(tokens: Sequence[str]) -> None:
    with pytest.raises(SettingNeeded) as refused:
        listed_vocabulary(tokens, Path("v"))
    assert (refused.value.key, refused.value.choices) == ("vocabulary", ("character", "word"))
    for kind in (Kind.CHARACTER, Kind.WORD):
        assert listed_vocabulary(tokens, Path("v"), kind=kind).kind is kind


@pytest.mark.parametrize("tokens", [LATIN, ESCAPED, TORCH_RNN, SPELLED])
def test_bytes_however_spelled(tokens: Sequence[str]) -> None:
    assert listed_vocabulary(tokens, Path("v")).tokens == EVERY_BYTE


@pytest.mark.parametrize("tokens", [LATIN, ESCAPED, SPELLED])
def test_special_tokens_beside_bytes(tokens: Sequence[str]) -> None:
    vocabulary = listed_vocabulary(("<pad>", "<s>", *tokens), Path("v"), "<s>")
    assert (vocabulary.kind, vocabulary.start) == (Kind.BYTE, 1)
    assert vocabulary.tokens == (b"<pad>", b"<s>", *EVERY_BYTE)


def test_what_fastai_fills_up_with() -> None:
    tokens = ("xxunk", "xxpad", *WORDS, "xxfake", "xxfake")
    assert listed_vocabulary(tokens, Path("v")).size == len(tokens)


def test_what_are_no_bytes() -> None:
    for tokens, problem in [
        (("a", "€"), "single byte"),
        (("\xe9", "[233]", "[200]"), "single byte"),
    ]:
        with pytest.raises(VocabularyError, match=problem):
            listed_vocabulary(tokens, Path("v"), kind=Kind.BYTE)
    with pytest.raises(VocabularyError, match="two tokens are the same byte"):
        listed_vocabulary(("[233]", "\udce9"), Path("v"))


def test_the_end_of_a_line_among_words() -> None:
    tokens = ("<eos>", "<unk>", *WORDS)
    vocabulary = listed_vocabulary(tokens, Path("v"), "<eos>", ["\\n", "#0"])
    assert vocabulary.tokens[:2] == (b"\n", b"<unk>")
    assert (vocabulary.start, vocabulary.end) == (0, (0,))
    assert any("<eos>" in note for note in vocabulary.notes)
    assert "'<eos>'" in vocabulary.describe()
    assert listed_vocabulary((*tokens, "\n"), Path("v")).tokens[0] == b"<eos>"


def test_another_unknown_token() -> None:
    tokens = ("<unk>", "<rare>", *WORDS)
    assert listed_vocabulary(tokens, Path("v"), unknown="<rare>").unknown == 1
    with pytest.raises(VocabularyError, match="unknown token 'none': not in the vocabulary"):
        listed_vocabulary(tokens, Path("v"), unknown="none")


LINES = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog sat"] * 5


def trained_tokenizer(size: int = 60) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def trained_sentencepiece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer_file(kind: str, folder: Path) -> tuple[Path, list[str]]:
    """A file of a name that tells nothing, and its tokens as the library has them."""
    path = folder / "vocabulary"
    if kind == "tokenizer.json":
        tokenizer = trained_tokenizer()
        path.write_text(tokenizer.to_str())
        spelled = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
        return path, [token for token in spelled if token is not None]
    path.write_bytes(trained_sentencepiece())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return path, [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_tokenizers_are_copied(name: str, tmp_path: Path) -> None:
    path, tokens = tokenizer_file(name, tmp_path)
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens)))
    options = ["--vocab", str(path), "--start-token", "<s>", "--end-token", "#3"]
    folder = convert([*arguments, *options], tmp_path / "models")
    manifest = read_manifest(folder)
    vocabulary = manifest.vocabulary
    expected = {"tokenizer.json": "KIND_TOKENIZER", "tokenizer.model": "KIND_SENTENCEPIECE"}
    assert model_pb2.Vocabulary.Kind.Name(vocabulary.kind) == expected[name]
    assert (vocabulary.size, len(vocabulary.tokens), vocabulary.joiner) == (len(tokens), 0, "")
    assert vocabulary.start_token == tokens.index("<s>")
    assert list(vocabulary.end_tokens) == [3]
    assert vocabulary.unknown_token == tokens.index("<unk>")
    assert (folder / name).read_bytes() == path.read_bytes()
    assert name in {file.name for file in manifest.files}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_of_another_size(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the weights were padded."""
    path, tokens = tokenizer_file(name, tmp_path)
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens) + 4))
    line = refusal([*arguments, "--vocab", str(path)], tmp_path / "models", capsys)
    assert f"{path}: {len(tokens)} tokens, but the weights of {arguments[0]} have" in line


@pytest.mark.parametrize("setting", ["vocabulary=word", "unknown_token=the"])
def test_what_a_tokenizer_decides(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tokens = tokenizer_file("tokenizer.json", tmp_path)
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens)))
    given = [*arguments, "--vocab", str(path), "--set", setting]
    line = refusal(given, tmp_path / "models", capsys)
    assert f"--set {setting}: {path} is a tokenizer" in line


def problem_of(path: Path) -> str | None:
    """What is wrong with a vocabulary, None where nothing is."""
    try:
        read_vocabulary(path)
    except VocabularyError as error:
        return str(error)
    return None


def test_damaged_tokenizers(tmp_path: Path) -> None:
    for name, step in (("tokenizer.json", 997), ("tokenizer.model", 211)):
        path, _ = tokenizer_file(name, tmp_path)
        content = path.read_bytes()
        damaged = [content[:end] for end in range(8, len(content) - 1, step)]
        for place in range(0, len(content), step):
            flipped = bytearray(content)
            flipped[place] ^= 0x40
            damaged.append(bytes(flipped))
        for bad in damaged:
            path.write_bytes(bad)
            problem = problem_of(path)
            # None: a letter of a token, or a score, may be another one.
            assert problem is None or problem.startswith(f"{path}: ")
            assert problem is None or "\n" not in problem


def test_a_tokenizer_with_a_gap(tmp_path: Path) -> None:
    specification = json.loads(trained_tokenizer().to_str())
    vocabulary = specification["model"]["vocab"]
    vocabulary[max(vocabulary, key=lambda token: vocabulary[token])] += 1
    specification["model"]["merges"] = []
    path = write(tmp_path, "tokenizer.json", json.dumps(specification))
    size = len(vocabulary)
    with pytest.raises(VocabularyError, match=f"no token of id {size - 1}, though {size} tokens"):
        read_vocabulary(path)


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
        ("v.json", '["a", "\\udcc3b"]', "token 1 has bytes that are not UTF-8"),
        ("v.json", r'["\ud800"]', "token 0 is half of a surrogate pair"),
        ("v.json", '{"version": "1.0", "model": {}}', "not a tokenizer.json"),
        ("v.txt", "", "the vocabulary is empty"),
        ("v.txt", "a\n\nb\n", "token 1 is empty"),
        ("v.txt", "[UNK]\n##ing\n##ed\n", "'##ing' are pieces of a tokenizer"),
        ("v.json", '["\u0120the", "\u2581of"]', "'\u0120the' are pieces of a tokenizer"),
    ],
)
def test_files_that_hold_no_vocabulary(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(VocabularyError) as refused:
        listed_vocabulary(listed(path), path)
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
    vocabulary = listed_vocabulary((*TOKENS, "#"), Path("v"), text, [text, "#1", text])
    assert vocabulary.start == expected
    assert vocabulary.end == tuple(sorted({1, expected}))


@pytest.mark.parametrize("text", ["z", "", "#11", "#-1", "#x", "#" + "9" * 5000])
def test_tokens_outside_the_vocabulary(text: str) -> None:
    with pytest.raises(VocabularyError, match=r"start token .*: not in the vocabulary of 10"):
        listed_vocabulary(TOKENS, Path("v"), text)


def test_the_manifest_has_bytes_in_id_order(tmp_path: Path) -> None:
    tokens = list(string.printable)
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens)), tokens)
    vocabulary = read_manifest(convert(arguments, tmp_path / "models")).vocabulary
    assert vocabulary.kind == model_pb2.Vocabulary.KIND_CHARACTER
    assert vocabulary.size == len(tokens)
    assert list(vocabulary.tokens) == [token.encode() for token in tokens]
    assert not vocabulary.HasField("unknown_token")


def test_words_in_the_manifest(tmp_path: Path) -> None:
    tokens = ["<eos>", "<unk>", *WORDS]
    arguments = save(tmp_path, state_dict(vocabulary=len(tokens)), tokens)
    folder = convert([*arguments, "--set", "unknown_token=the"], tmp_path / "models")
    vocabulary = read_manifest(folder).vocabulary
    assert vocabulary.kind == model_pb2.Vocabulary.KIND_WORD
    assert vocabulary.joiner == " "
    assert list(vocabulary.tokens) == [b"\n", *(token.encode() for token in tokens[1:])]
    assert vocabulary.unknown_token == 2


def test_bytes_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = save(tmp_path, state_dict(vocabulary=256))
    assert "holds no vocabulary" in refusal(arguments, tmp_path / "models", capsys)
    folder = convert([*arguments, "--set", "vocabulary=byte"], tmp_path / "models")
    vocabulary = read_manifest(folder).vocabulary
    assert vocabulary.kind == model_pb2.Vocabulary.KIND_BYTE
    assert list(vocabulary.tokens) == list(EVERY_BYTE)
