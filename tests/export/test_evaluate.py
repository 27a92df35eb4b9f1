"""Perplexities against a sequential PyTorch run, and the encoder against the server's."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from google.protobuf import json_format
from hypothesis import example, given, settings
from support.checkpoints import Arrays, convert, letters, read_manifest, save, state_dict
from support.networks import expected_logprobs, network, some_tokens
from support.tokenizers_ import LINES, SENTENCEPIECE, TOKENIZERS, sentencepiece_model, tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2
from unrolled_export import encoding
from unrolled_export.__main__ import main
from unrolled_export.building import build
from unrolled_export.encoding import Part, read_parts
from unrolled_export.errors import TextError
from unrolled_export.evaluation import evaluate
from unrolled_export.network import Cell
from unrolled_export.precision import Precision
from unrolled_export.reference import initial_states
from unrolled_server.vocabulary import UnknownSymbol, Vocabulary
from unrolled_server.vocabulary_loader import load_vocabulary

Capture = pytest.CaptureFixture[str]

FIGURES = re.compile(
    r"(\S+) nats, (\S+) bits a character; perplexity (\S+) a token \((\S+) tokens, (\S+) "
    r"characters\)\n"
)


@dataclass(frozen=True)
class Figures:
    """What the command prints."""

    nats: float
    bits: float
    perplexity: float
    tokens: int
    characters: int


def evaluated(capsys: Capture, *arguments: str | Path) -> Figures:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    match = FIGURES.fullmatch(printed)
    assert match is not None, printed
    counts = [int(group.replace(",", "")) for group in match.groups()[3:]]
    return Figures(float(match[1]), float(match[2]), float(match[3]), counts[0], counts[1])


def refused(capsys: Capture, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    # A progress bar may stand in front of it.
    return printed.err.rstrip("\n").split("\n")[-1].split("\r")[-1]


@torch.no_grad()
def cost(arrays: Arrays, ids: list[int]) -> float:
    """Nats of all tokens but the first, by PyTorch in float64, one after the other."""
    tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    size, hidden = tensors["embedding.weight"].shape[1], tensors["rnn.weight_hh_l0"].shape[1]
    layers = sum("weight_ih" in name for name in tensors)
    rnn = nn.GRU(size, hidden, layers).double()
    rnn.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("rnn.")})
    states, _ = rnn(tensors["embedding.weight"][ids])
    logits = states @ tensors["head.weight"].T + tensors["head.bias"]
    loss = nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    return float(loss)


def assert_right(found: Figures, nats: float, tokens: int, characters: int) -> None:
    assert (found.tokens, found.characters) == (tokens - 1, characters)
    assert found.nats == pytest.approx(nats / characters, abs=6e-5)
    assert found.bits == pytest.approx(nats / characters / math.log(2), abs=6e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / (tokens - 1)), abs=6e-5, rel=1e-5)


def random_text(count: int, size: int = 5) -> str:
    ids = np.random.default_rng(0).integers(0, size, count)
    return "".join(np.array(letters(size))[ids])


@pytest.mark.parametrize(("part", "count"), [(7, 300), (encoding.PART, 20_000)])
def test_figures_are_those_of_pytorch(
    part: int, count: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the checkpoint, and of its export: the folder of the version and that of the model."""
    monkeypatch.setattr(encoding, "PART", part)
    arrays = state_dict("gru", hidden=8, layers=2)
    arguments = save(tmp_path, arrays, letters(5))
    text = tmp_path / "text.txt"
    text.write_text(random_text(count))
    nats = cost(arrays, ["abcde".index(character) for character in random_text(count)])
    folder = convert(arguments, tmp_path / "models")
    for model in (arguments, [str(folder)], [str(folder.parent)]):
        assert_right(evaluated(capsys, *model, text), nats, count, count)


def test_the_latest_version_of_a_model(tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "text.txt"
    text.write_text(random_text(50))
    found = []
    for scale in (1, 3):
        arrays = state_dict("gru") | {"head.weight": scale * state_dict("gru")["head.weight"]}
        words = [*save(tmp_path, arrays, letters(5)), "--output", str(tmp_path / "models")]
        assert main(["convert", *words]) == 0
        found.append(evaluated(capsys, tmp_path / "models" / "model", text).nats)
        nats = cost(arrays, ["abcde".index(character) for character in random_text(50)])
        assert found[-1] == pytest.approx(nats / 50, abs=6e-5)
    assert found[0] != found[1]


@pytest.mark.parametrize("size", [1, 5, 100])
def test_parts_and_runs_change_nothing(size: int) -> None:
    """With learned first states, and a last part that is empty."""
    model, tokens = network(Cell.LSTM, initial=True), some_tokens(1, 300)
    parts = [Part(tokens[0, k : k + size], size, size) for k in range(0, 300, size)]
    empty = Part(np.zeros(0, np.int64), 0, 0)
    engine = build(model, Precision.FP32).engine
    found = evaluate([engine], initial_states(model, 1), iter([empty, *parts, empty]))
    (evaluation,) = found.evaluations
    wanted = expected_logprobs(model, tokens[:, :-1])[0, np.arange(299), tokens[0, 1:]]
    assert evaluation.nats == pytest.approx(-wanted.sum(), rel=1e-6)
    assert (evaluation.tokens, evaluation.characters, found.agreement) == (299, 300, 1.0)


def test_agreement_counts_greedy_choices() -> None:
    model, tokens = network(Cell.GRU, seed=1), some_tokens(1, 200)
    other = network(Cell.GRU, seed=2)
    engines = [build(each, Precision.FP32).engine for each in (model, other, model)]
    part = Part(tokens[0], 200, 200)
    found = evaluate(engines, initial_states(model, 1), iter([part]))
    choices = [expected_logprobs(m, tokens[:, :-1])[0].argmax(axis=-1) for m in (model, other)]
    assert 0 < found.agreement < 1
    assert found.agreement == (choices[0] == choices[1]).mean()
    assert found.evaluations[0] == found.evaluations[2]
    assert found.evaluations[0].nats != found.evaluations[1].nats


# --- Vocabularies ---------------------------------------------------------------------------------


def test_bytes(tmp_path: Path, capsys: Capture) -> None:
    arrays, text = state_dict("gru", vocabulary=256), "wörld — naïve\n" * 9
    (tmp_path / "text.txt").write_text(text)
    arguments = [*save(tmp_path, arrays), "--set", "vocabulary=byte"]
    found = evaluated(capsys, *arguments, tmp_path / "text.txt")
    ids = list(text.encode())
    assert_right(found, cost(arrays, ids), len(ids), len(text))


def test_groups(tmp_path: Path, capsys: Capture) -> None:
    tokens = ["a", "b", "ab", "abc", "c", "[x]"]
    arrays = state_dict("gru", vocabulary=6)
    (tmp_path / "text.txt").write_text("abcabab[x]cba")
    arguments = [*save(tmp_path, arrays, tokens), "--set", "vocabulary=character"]
    found = evaluated(capsys, *arguments, tmp_path / "text.txt")
    assert_right(found, cost(arrays, [3, 2, 2, 5, 4, 1, 0]), 7, 13)


def test_words(tmp_path: Path, capsys: Capture) -> None:
    tokens = ["the", "cat", "<unk>", "sat"]
    arrays = state_dict("gru", vocabulary=4)
    (tmp_path / "text.txt").write_text("the cat\nsat  on the\tcat\n")
    options = ["--set", "vocabulary=word", "--set", "unknown_token=<unk>"]
    arguments = [*save(tmp_path, arrays, tokens), *options]
    found = evaluated(capsys, *arguments, tmp_path / "text.txt")
    assert_right(found, cost(arrays, [0, 1, 3, 2, 0, 1]), 6, 24)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_pieces(name: str, tmp_path: Path, capsys: Capture) -> None:
    text = "\n".join(LINES) + "\n"
    if name == "tokenizer.json":
        own = tokenizer("byte-level")
        (tmp_path / name).write_text(own.to_str())
        ids, size = own.encode(text).ids, own.get_vocab_size()
    else:
        (tmp_path / name).write_bytes(sentencepiece_model("bpe"))
        processor = server_vocabulary(vocabulary("bpe"), FILES["bpe"])
        ids, size = processor.encode(text).tolist(), processor.size
    arrays = state_dict("gru", vocabulary=size)
    (tmp_path / "text.txt").write_text(text)
    arguments = [*save(tmp_path, arrays), "--vocab", str(tmp_path / name)]
    folder = convert(arguments, tmp_path / "models")
    for model in (arguments, [str(folder)]):
        found = evaluated(capsys, *model, tmp_path / "text.txt")
        assert_right(found, cost(arrays, ids), len(ids), len(text))


# --- The server's encoder -------------------------------------------------------------------------

KINDS = model_pb2.Vocabulary
WORDS = ["the", "cat", "sat", "mat", "dog's!", "world", "wörld", "—", "naïve", ".", "don't", "漢"]
LISTED: dict[str, model_pb2.Vocabulary] = {
    "characters": KINDS(kind="KIND_CHARACTER", tokens=[c.encode() for c in "abcß\n 漢"]),
    "characters and unknown": KINDS(
        kind="KIND_CHARACTER", tokens=[c.encode() for c in "abc"], unknown_token=2
    ),
    "groups": KINDS(
        kind="KIND_CHARACTER",
        tokens=[c.encode() for c in ["a", "b", "ab", "abc", "bca", "ßß", "c", " ", "\n"]],
        unknown_token=0,
    ),
    "groups without all characters": KINDS(
        kind="KIND_CHARACTER", tokens=[b"ab", b"a", b"ca", b"abcab"], unknown_token=1
    ),
    "bytes": KINDS(kind="KIND_BYTE", tokens=[bytes([value]) for value in range(256)]),
    "some bytes": KINDS(
        kind="KIND_BYTE", tokens=[bytes([value]) for value in b"abc\xc3"], unknown_token=0
    ),
    "words": KINDS(kind="KIND_WORD", tokens=[b"the", b"cat", b"a"], unknown_token=1, joiner=" "),
    "words and lines": KINDS(
        kind="KIND_WORD", tokens=[b"the", b"\n", b"cat"], unknown_token=2, joiner=" "
    ),
}
FILES: dict[str, dict[str, bytes]] = {
    **{name: {"tokenizer.json": tokenizer(name).to_str().encode()} for name in TOKENIZERS},
    **{name: {"tokenizer.model": sentencepiece_model(name)} for name in SENTENCEPIECE},
}


def vocabulary(name: str) -> model_pb2.Vocabulary:
    """As a manifest has it."""
    message = KINDS()
    if name in LISTED:
        message.CopyFrom(LISTED[name])
        message.size = len(message.tokens)
    elif "tokenizer.json" in FILES[name]:
        message.kind = KINDS.KIND_TOKENIZER
        message.size = tokenizer(name).get_vocab_size()
    else:
        from sentencepiece import SentencePieceProcessor

        message.kind = KINDS.KIND_SENTENCEPIECE
        processor = SentencePieceProcessor(model_proto=FILES[name]["tokenizer.model"])
        message.size = processor.get_piece_size()
    return message


def server_vocabulary(message: model_pb2.Vocabulary, files: Mapping[str, bytes]) -> Vocabulary:
    """What the server makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        named = [model_pb2.Model.File(name=name) for name in files]
        return load_vocabulary(Path(folder), model_pb2.Model(vocabulary=message, files=named))


def parts_of(
    path: Path, text: str, part: int, message: model_pb2.Vocabulary, files: Mapping[str, bytes]
) -> tuple[list[int], int, int]:
    """Ids, characters and bytes of a text that is read `part` bytes at a time."""
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "PART", part)
        # Longer than every word of the texts.
        patched.setattr(encoding, "CONTEXT", 24)
        parts = list(read_parts(path, message, files))
    ids = [token for part in parts for token in part.ids.tolist()]
    return ids, sum(part.characters for part in parts), sum(part.bytes for part in parts)


TEXTS = {
    "listed": st.text(st.sampled_from("abcß\n 漢"), max_size=40),
    "words": st.lists(
        st.sampled_from([*WORDS, " ", "\n", " \n", "\t", "  ", "\n\n"]), max_size=40
    ).map(lambda parts: "".join(part if part.isspace() else f"{part} " for part in parts)),
}


@pytest.mark.parametrize("name", LISTED)
def test_listed_tokens_are_those_of_the_server(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    message, path = vocabulary(name), tmp_path_factory.mktemp("texts") / "text.txt"
    server = server_vocabulary(message, {})

    @settings(max_examples=80)
    @given(text=TEXTS["listed"] | TEXTS["words"], part=st.integers(1, 12))
    @example(text="abcabcab", part=1)
    @example(text="the cat", part=5)
    def check(text: str, part: int) -> None:
        if message.HasField("unknown_token") or not set(text) - set("abcß\n 漢"):
            size = len(text.encode())
            expected = (server.encode(text).tolist(), len(text), size)
            assert parts_of(path, text, part, message, {}) == expected

    check()


@pytest.mark.parametrize("name", FILES)
def test_pieces_are_those_of_the_server(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    message, path = vocabulary(name), tmp_path_factory.mktemp("texts") / "text.txt"
    server = server_vocabulary(message, FILES[name])

    @settings(max_examples=25)
    @given(text=TEXTS["words"], part=st.sampled_from([3, 11, 40, 400]))
    @example(text="the cat sat on the mat\nthe dog, it's the dog's!\n" * 3, part=11)
    def check(text: str, part: int) -> None:
        expected = (server.encode(text).tolist(), len(text), len(text.encode()))
        assert parts_of(path, text, part, message, FILES[name]) == expected

    check()


def without_unknown() -> dict[str, tuple[model_pb2.Vocabulary, Mapping[str, bytes]]]:
    """Vocabularies of every kind that can lack a part of a text."""
    found: dict[str, tuple[model_pb2.Vocabulary, Mapping[str, bytes]]] = {}
    for name in LISTED:
        message = vocabulary(name)
        message.ClearField("unknown_token")
        found[name] = message, {}
    for name, made in (("letters", letters_only()), ("whole words", words_only())):
        message = KINDS(kind="KIND_TOKENIZER", size=made.get_vocab_size())
        found[name] = message, {"tokenizer.json": made.to_str().encode()}
    return found


def letters_only() -> Tokenizer:
    """Leaves characters out that it lacks."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "▁": 3}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def words_only() -> Tokenizer:
    """Refuses words that it lacks."""
    made = Tokenizer(models.WordLevel({"ab": 0, "ba": 1}, unk_token="absent"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("name", without_unknown())
def test_what_the_server_refuses_is_refused_there(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    message, files = without_unknown()[name]
    server = server_vocabulary(message, files)
    refused = []

    @settings(max_examples=80)
    @given(text=st.text(st.sampled_from("abcß\n 漢"), max_size=40), part=st.integers(1, 12))
    @example(text="ab ba ab ba cab", part=4)
    @example(text="the cat\néa", part=5)
    def check(text: str, part: int) -> None:
        try:
            expected = server.encode(text).tolist()
        except UnknownSymbol as error:
            refused.append(text)
            with pytest.raises(TextError, match=rf" at character {error.offset} is not in the voc"):
                parts_of(path, text, part, message, files)
            return
        assert parts_of(path, text, part, message, files)[0] == expected

    check()
    assert refused or name == "bytes"


@pytest.mark.parametrize("name", ["byte-level", "unigram", "bpe"])
@pytest.mark.parametrize("ending", [" ", "\n", ""])
def test_long_texts_of_pieces(name: str, ending: str, tmp_path: Path) -> None:
    """As they are read in earnest; the last is hardly more than one word."""
    text = ending.join((*LINES, "the cat ")) if ending else "thecatsatonthemat"
    text = "the cat " + (text + ending) * (400 if ending else 1500)
    text += "" if ending else " mat" + text[8:]
    (tmp_path / "text.txt").write_text(text)
    parts = list(read_parts(tmp_path / "text.txt", vocabulary(name), FILES[name]))
    assert len(parts) > 3
    assert max(part.characters for part in parts) <= encoding.PART + 2 * encoding.CONTEXT
    found = [token for part in parts for token in part.ids.tolist()]
    assert found == server_vocabulary(vocabulary(name), FILES[name]).encode(text).tolist()


# --- Texts that cannot be evaluated ---------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    return save(tmp_path, state_dict("gru"), letters(5))


@pytest.mark.parametrize("part", [3, encoding.PART])
def test_an_unknown_character(
    part: int, model: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "PART", part)
    text = tmp_path / "text.txt"
    text.write_text("abcdeabcdeäabcdeä")
    line = refused(capsys, *model, text)
    assert line == (
        f"unrolled-export: {text}: 'ä' at character 10 is not in the vocabulary of 5 tokens"
    )


def test_an_unknown_byte_and_an_unknown_word(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab\nab ßxc\n")
    some = KINDS(kind="KIND_BYTE", size=5, tokens=[b"a", b"b", b"\n", b" ", b"\xc3"])
    with pytest.raises(TextError, match=r"text.txt: 'ß' at character 6 is not in the vocabulary"):
        list(read_parts(text, some, {}))
    words = KINDS(kind="KIND_WORD", size=1, tokens=[b"ab"], joiner=" ")
    with pytest.raises(TextError, match=r"text.txt: 'ß' at character 6 is not in the vocabulary"):
        list(read_parts(text, words, {}))


@pytest.mark.parametrize("part", [4, 400])
def test_a_character_that_a_tokenizer_leaves_out(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "PART", part)
    monkeypatch.setattr(encoding, "CONTEXT", 5)
    (tmp_path / "text.txt").write_text("ab ba ab ba ab ba cab")
    for made in (letters_only(), words_only()):
        message = KINDS(kind="KIND_TOKENIZER", size=made.get_vocab_size())
        files = {"tokenizer.json": made.to_str().encode()}
        with pytest.raises(TextError, match=r"text.txt: 'c' at character 18 is not in the voc"):
            list(read_parts(tmp_path / "text.txt", message, files))


def test_a_character_that_only_an_added_token_has(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    message = KINDS(kind="KIND_TOKENIZER", size=made.get_vocab_size())
    files = {"tokenizer.json": made.to_str().encode()}
    path = tmp_path / "text.txt"
    path.write_text("ab<|end|>ba")
    parts = list(read_parts(path, message, files))
    expected = made.encode("ab<|end|>ba", add_special_tokens=False).ids
    assert np.concatenate([part.ids for part in parts]).tolist() == expected
    path.write_text("ab<|end|>b<")
    with pytest.raises(TextError, match=r"text.txt: '<' at character 10 is not in the voc"):
        list(read_parts(path, message, files))


@pytest.mark.parametrize("part", [1, 2, 3, 7, encoding.PART])
@pytest.mark.parametrize(
    ("content", "place"),
    [(b"abc\xffde", 3), (b"\xc3\xa4ab\xe6\xbc", 4), (b"ab\xc3", 2), (b"ab\xe6\xbcab", 2)],
)
def test_a_text_that_is_not_utf8(
    content: bytes, place: int, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "PART", part)
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    message = vocabulary("bytes")
    with pytest.raises(TextError, match=rf"^{re.escape(str(text))}: not UTF-8 at byte {place}$"):
        list(read_parts(text, message, {}))


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_that_is_too_short(
    content: str, model: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "text.txt").write_text(content)
    line = refused(capsys, *model, tmp_path / "text.txt")
    assert line.startswith("unrolled-export: the text is too short: two tokens are the least")


def test_no_such_text(model: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert "absent.txt" in refused(capsys, *model, tmp_path / "absent.txt")
    assert str(tmp_path) in refused(capsys, *model, tmp_path)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    size = 1_000_000
    text.write_bytes(b"abcde ab\n\xc3\x9f" * (size // 11))
    for name in ("bytes", "groups", "words"):
        message = vocabulary(name)
        tracemalloc.start()
        count = sum(len(part.ids) for part in read_parts(text, message, {}))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count > size // 11
        # The ids alone, all at once, would take far more.
        assert peak < 1_000_000 < 8 * count or name == "words"


# --- Damaged exports ------------------------------------------------------------------------------


@pytest.fixture
def folder(model: list[str], tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("abcde")
    return convert(model, tmp_path / "models")


def manifest(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return content


def test_a_flipped_bit(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    graph = bytearray((folder / "engine.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / "engine.onnx").write_bytes(graph)
    line = refused(capsys, folder, tmp_path / "text.txt")
    assert line == (
        f"unrolled-export: {folder / 'engine.onnx'}: damaged: its SHA-256 is not that of the "
        "manifest"
    )


def test_a_missing_file(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (folder / "model.onnx").unlink()
    line = refused(capsys, folder.parent, tmp_path / "text.txt")
    assert f"{folder / 'model.onnx'}: no such file, though the manifest lists it" in line


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "..", "", ".", "a\0b"])
def test_a_file_outside_the_folder(
    name: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "secret").write_text("not to be read")
    changed = manifest(folder)
    changed["files"] = [{"name": name, "sha256": "0", "bytes": "1"}]
    (folder / "manifest.json").write_text(json.dumps(changed))
    line = refused(capsys, folder, tmp_path / "text.txt")
    assert f"{folder / 'manifest.json'}: files: {name!r} is outside the folder" in line


CHANGES: dict[str, object] = {
    "files": [],
    "states": [{"input": "h_00", "output": "next_h_00"}],
    "vocabulary": {},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_manifest(key: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {key: CHANGES[key]}))
    line = refused(capsys, folder, tmp_path / "text.txt")
    assert line.startswith(f"unrolled-export: {folder / 'manifest.json'}: ")


HOSTILE: dict[str, tuple[dict[str, object], str]] = {
    "no file": ({"files": []}, "files: engine.onnx is not listed"),
    "no tokens": ({"vocabulary": {}}, "vocabulary: has not as many tokens as its size"),
    "no tokenizer": (
        {"vocabulary": {"kind": "KIND_TOKENIZER", "size": 5}},
        "files: tokenizer.json is not listed",
    ),
    "a huge state": (
        {"states": [{"input": "h_00", "output": "next_h_00", "shape": ["1000000000000"]}]},
        "states: engine.onnx has none of such shapes",
    ),
    "a state of no size": (
        {"states": [{"input": "h_00", "output": "next_h_00", "shape": ["-4"]}]},
        "states: engine.onnx has none of such shapes",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_made_to_harm(name: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Its fingerprint is right."""
    change, expected = HOSTILE[name]
    message = json_format.ParseDict(manifest(folder) | change, model_pb2.Model())
    message.fingerprint = fingerprint(message)
    (folder / "manifest.json").write_text(json_format.MessageToJson(message))
    line = refused(capsys, folder, tmp_path / "text.txt")
    assert line == f"unrolled-export: {folder / 'manifest.json'}: {expected}"


def test_states_that_the_graph_does_not_have(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    message = json_format.ParseDict(manifest(folder), model_pb2.Model())
    message.states[0].shape[:] = [5]
    message.fingerprint = fingerprint(message)
    (folder / "manifest.json").write_text(json_format.MessageToJson(message))
    assert "engine.onnx: " in refused(capsys, folder, tmp_path / "text.txt")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"files": 3}'])
def test_what_is_no_manifest(content: bytes, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (folder / "manifest.json").write_bytes(content)
    line = refused(capsys, folder, tmp_path / "text.txt")
    assert line.startswith(f"unrolled-export: {folder / 'manifest.json'}: ")


def test_a_copied_version_is_evaluated(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    here, there = (evaluated(capsys, path, tmp_path / "text.txt") for path in (folder, copied))
    assert here == there
    assert read_manifest(copied).name == "model"
