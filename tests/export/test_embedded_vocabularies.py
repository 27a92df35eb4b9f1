"""Vocabularies that lie in a file of `torch.save` beside the model."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from unrolled_export.errors import CheckpointError
from unrolled_export.readers.pytorch_files.checkpoint import PytorchFile
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings

TOKENS = ["\n", " ", "e", "a", "ß", "<unk>", "zz"]
"""In an order that sorting would not give."""
CHARACTERS = "etaoinshrdlu"


class Dictionary:
    """As in pytorch/examples, awd-lstm-lm and, with other names, flair."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Words(list[str]):
    """A list of a class of its own."""


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """While saving, the classes above are those of somebody's module `data`."""
    module = ModuleType("data")
    for kind in (Dictionary, Words):
        setattr(module, kind.__name__, kind)
        kind.__module__ = "data"
    sys.modules["data"] = module
    yield
    del sys.modules["data"]


def model(size: int = len(TOKENS)) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    parts = {"encoder": nn.Embedding(size, 3), "rnn": nn.GRU(3, 4), "decoder": nn.Linear(4, size)}
    return dict(nn.ModuleDict(parts).state_dict())


def read(path: Path, *, size: int = len(TOKENS), **beside: object) -> Checkpoint:
    torch.save({"state_dict": model(size), **beside}, path / "model.pt")
    return PytorchFile().read(path / "model.pt", Settings(allow_pickle=True))


IDS = {token: index for index, token in enumerate(TOKENS)}
BYTES = [token.encode() for token in TOKENS]

FORMS: dict[str, object] = {
    "list": TOKENS,
    "tuple": tuple(TOKENS),
    "bytes": BYTES,
    "ids by token": IDS,
    "ids by token, out of order": dict(reversed(IDS.items())),
    "ids by bytes": {token: index for index, token in enumerate(BYTES)},
    "tokens by id": dict(enumerate(TOKENS)),
    "tokens by id, out of order": dict(reversed(list(enumerate(TOKENS)))),
    "NumPy's numbers": {np.int64(index): token for index, token in enumerate(TOKENS)},
    "array": np.array(TOKENS),
    "array of objects": np.array(TOKENS, dtype=object),
    "list of a class": Words(TOKENS),
    "awd-lstm-lm": Dictionary(
        dictionary=Dictionary(word2idx=IDS, idx2word=TOKENS, counter=Counter(TOKENS), total=7)
    ),
    "flair": Dictionary(
        item2idx={token: index for index, token in enumerate(BYTES)}, idx2item=BYTES, add_unk=True
    ),
    "torchtext": Dictionary(
        freqs=Counter(TOKENS * 3), itos=TOKENS, stoi=defaultdict(int, IDS), vectors=None
    ),
    "stanza": {"lang": "en", "cutoff": 1, "_id2unit": TOKENS, "_unit2id": IDS, "lower": False},
    "both ways": {"char2idx": IDS, "idx2char": dict(enumerate(TOKENS))},
    "REINVENT": Dictionary(_tokens=IDS | dict(enumerate(TOKENS)), _current_id=len(TOKENS)),
    "REINVENT, added one by one": Dictionary(
        _tokens={key: value for pair in IDS.items() for key, value in (pair, pair[::-1])}
    ),
    "ids as texts": {token: str(index) for token, index in IDS.items()},
    "tokens by ids as texts": {str(index): token for token, index in IDS.items()},
    "ids as tensors": {token: torch.tensor(index) for token, index in IDS.items()},
    "ids as arrays": {token: np.array(index) for token, index in IDS.items()},
    "ids as NumPy's numbers": {token: np.int32(index) for token, index in IDS.items()},
    "deep": {"data": [{"fields": ({"tokens": TOKENS},)}]},
}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("form", FORMS)
def test_a_vocabulary_of_any_form(form: str, tmp_path: Path) -> None:
    assert read(tmp_path, thing=FORMS[form]).vocabulary == tuple(TOKENS)


class Network(nn.ModuleDict):
    """Keeps its vocabulary, as many students' models do."""


def test_a_vocabulary_in_the_model_itself(tmp_path: Path) -> None:
    size = len(TOKENS)
    network = Network({"lstm": nn.LSTM(size, 4, 3), "fc": nn.Linear(4, size)})
    network.chars, network.int2char = tuple(TOKENS), dict(enumerate(TOKENS))  # type: ignore[assignment]
    network.names = ["a", "b", "c", "d", "e", "f", "g"]  # type: ignore[assignment]
    torch.save(network, tmp_path / "model.pt")
    checkpoint = PytorchFile().read(tmp_path / "model.pt", Settings(allow_pickle=True))
    assert checkpoint.vocabulary == tuple(TOKENS)


def test_characters_in_one_text(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, size=len(CHARACTERS), chars=CHARACTERS, note="abcdefgh" * 5)
    assert checkpoint.vocabulary == tuple(CHARACTERS)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    tokens = [b"a", b"\xff", *(bytes([code]) for code in range(48, 53))]
    assert read(tmp_path, itos=tokens).vocabulary == ("a", "\udcff", *"01234")


OTHERS: dict[str, object] = {
    "set": set(TOKENS),
    "frozenset": frozenset(TOKENS),
    "of another size": TOKENS[1:],
    "twice the same": [*TOKENS[1:], TOKENS[1]],
    "ids from 1": {token: index + 1 for index, token in enumerate(TOKENS)},
    "counts": Counter(TOKENS * 3),
    "ids with a gap": {**IDS, "zz": 9},
    "both ways that differ": IDS | dict(enumerate(TOKENS[::-1])),
    "an id twice": {**IDS, "zz": 0},
    "numbers": list(range(len(TOKENS))),
    "mixed": [*TOKENS[1:], 3],
    "a short word": "network",
    "a map of texts": dict(zip(TOKENS, TOKENS, strict=True)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_vocabulary(other: str, tmp_path: Path) -> None:
    assert read(tmp_path, vocab=OTHERS[other]).vocabulary is None


def test_names_settle_which_list_it_is(tmp_path: Path) -> None:
    layers = ["a", "b", "c", "d", "e", "f", "g"]
    assert read(tmp_path, stages=layers, itos=TOKENS).vocabulary == tuple(TOKENS)


FROM_1: dict[object, object] = {token: index for index, token in enumerate(TOKENS[1:], 1)}
COUNTED = {
    "ids by token": FROM_1,
    "tokens by id": {index: token for token, index in FROM_1.items()},
}


@pytest.mark.parametrize("form", COUNTED)
def test_ids_from_1_leave_0_for_padding(form: str, tmp_path: Path) -> None:
    checkpoint = read(tmp_path, config={"index": COUNTED[form]}, epoch=3)
    assert checkpoint.vocabulary == ("<pad>", *TOKENS[1:])
    assert checkpoint.vocabulary_place == "config.index"


def test_a_vocabulary_that_is_whole_counts_more(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, ids=FROM_1, itos=TOKENS)
    assert (checkpoint.vocabulary, checkpoint.vocabulary_place) == (tuple(TOKENS), "itos")


def test_vocabularies_that_disagree(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"source\.itos and target\.itos: add --vocab FILE"):
        read(tmp_path, source={"itos": TOKENS}, target={"itos": TOKENS[::-1]})


def test_vocabularies_that_agree(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, source={"itos": TOKENS}, target={"stoi": IDS})
    assert checkpoint.vocabulary == tuple(TOKENS)


@pytest.mark.parametrize("direction", [True, False])
def test_a_model_that_reads_backwards(direction: bool, tmp_path: Path) -> None:
    """As flair and stanza save it: nothing but the flag tells them apart."""
    if direction:
        checkpoint = read(tmp_path, is_forward_lm=True, dictionary=TOKENS)
        assert checkpoint.vocabulary == tuple(TOKENS)
        return
    with pytest.raises(CheckpointError, match="is_forward_lm=False"):
        read(tmp_path, is_forward_lm=False, dictionary=TOKENS)


def test_a_students_checkpoint(tmp_path: Path) -> None:
    """{n_hidden, n_layers, state_dict, tokens} of a network with one-hot input."""
    torch.manual_seed(5)
    size = len(TOKENS)
    parts = nn.ModuleDict({"lstm": nn.LSTM(size, 4, 2), "fc": nn.Linear(4, size)})
    content = {
        "n_hidden": 4,
        "n_layers": 2,
        "state_dict": parts.state_dict(),
        "tokens": tuple(TOKENS),
    }
    torch.save(content, tmp_path / "rnn_20_epoch.net")
    checkpoint = PytorchFile().read(tmp_path / "rnn_20_epoch.net", Settings())
    assert checkpoint.vocabulary == tuple(TOKENS)
    assert checkpoint.network.embedding is None
    assert len(checkpoint.network.layers) == 2
