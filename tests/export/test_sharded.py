"""State dicts in several safetensors files, with the index that puts them together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import convert, letters, read_manifest, refusal, save, state_dict
from torch import nn

Capture = pytest.CaptureFixture[str]

SIZE = 7
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Model(nn.Module):
    """The checkpoint's own program."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(SIZE, 4)
        self.rnn = nn.LSTM(4, 6, 2, batch_first=True)
        self.head = nn.Linear(6, SIZE)

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> np.ndarray:
        """[T, V]: of what follows each of `ids`."""
        logits = self.head(self.rnn(self.embedding(torch.tensor([ids])))[0])[0]
        result: np.ndarray = logits.double().log_softmax(-1).numpy()
        return result


def sharded(folder: Path) -> dict[str, str]:
    """Write a model as `save_pretrained` does above `max_shard_size`; returns its weight_map."""
    tensors = {name: tensor.contiguous() for name, tensor in Model().state_dict().items()}
    places = {name: SHARDS[index >= len(tensors) // 2] for index, name in enumerate(tensors)}
    for shard in SHARDS:
        part = {name: tensors[name] for name, place in places.items() if place == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    write_index(folder, {"metadata": {"total_size": 1}, "weight_map": places})
    (folder / "vocab.json").write_text(
        json.dumps(dict(zip(letters(SIZE), range(SIZE), strict=True)))
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "lstm", "vocab_size": SIZE}))
    return places


def write_index(folder: Path, content: object) -> None:
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize("named", ["", INDEX])
def test_a_model_in_several_files(named: str, tmp_path: Path, capsys: Capture) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference.json"
    source.mkdir()
    sharded(source)
    ids = np.random.default_rng(0).integers(0, SIZE, 40).tolist()
    rows = Model().logprobs(ids[:-1])
    expected = rows[np.arange(len(ids) - 1), ids[1:]].tolist()
    reference.write_text(json.dumps({"fixed_ids": ids, "logprobs": expected}))
    arguments = [str(source / named), "--reference", str(reference)]
    if named:
        arguments += ["--vocab", str(source / "vocab.json")]
    manifest = read_manifest(convert(arguments, tmp_path / "models"))
    assert "reading verified against reference.json" in manifest.parity.scope
    assert [token.decode() for token in manifest.vocabulary.tokens] == letters(SIZE)
    assert all(f"{name} (SHA-256 " in manifest.source for name in (INDEX, *SHARDS))
    assert "safetensors state dict in 2 files" in capsys.readouterr().out


def test_one_of_several_files(tmp_path: Path, capsys: Capture) -> None:
    sharded(tmp_path)
    line = refusal([str(tmp_path / SHARDS[0])], tmp_path / "models", capsys)
    assert line.endswith("one of 2 files of a model: name their folder or .index.json")
    (whole,) = save(tmp_path, state_dict())
    path = Path(whole).rename(tmp_path / "model-00001-of-00001.safetensors")
    assert "holds no vocabulary" in refusal([str(path)], tmp_path / "models", capsys)


def test_a_missing_file(tmp_path: Path, capsys: Capture) -> None:
    sharded(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert line.endswith(f"{tmp_path / SHARDS[1]}: no such file, though {INDEX} names it")


def test_a_missing_tensor(tmp_path: Path, capsys: Capture) -> None:
    places = sharded(tmp_path)
    write_index(tmp_path, {"weight_map": places | {"head.scale": SHARDS[0]}})
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert f"{tmp_path / SHARDS[0]}: no tensor head.scale, though {INDEX} has it there" in line


def test_a_tensor_in_two_files(tmp_path: Path, capsys: Capture) -> None:
    sharded(tmp_path)
    save_file(Model().state_dict(), tmp_path / SHARDS[1])
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert f"{tmp_path / SHARDS[1]}: embedding.weight is in another file of {INDEX}, too" in line


@pytest.mark.parametrize(
    "content", [[], {}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../a"}}]
)
def test_what_is_no_index(content: object, tmp_path: Path, capsys: Capture) -> None:
    sharded(tmp_path)
    write_index(tmp_path, content)
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert f'{tmp_path / INDEX}: field "weight_map" is ' in line


def test_an_index_that_is_cut(tmp_path: Path, capsys: Capture) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {')
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert f"{tmp_path / INDEX}: not JSON" in line
