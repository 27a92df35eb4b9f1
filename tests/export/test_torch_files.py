"""Files of `torch.save`, read without torch: every format, wherever the model lies in them."""

from __future__ import annotations

import argparse
import collections
import importlib.util
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from unrolled_export.errors import CheckpointError, PickleNeeded, SettingNeeded
from unrolled_export.readers import read_checkpoint
from unrolled_export.readers.pickling.inert import Opaque
from unrolled_export.readers.pickling.numpy_arrays import NumpyArray
from unrolled_export.readers.pytorch_files.checkpoint import PytorchFile
from unrolled_export.readers.pytorch_files.module_tree import FoundModel, find_model
from unrolled_export.readers.pytorch_files.storage import StoredTensor
from unrolled_export.readers.pytorch_files.torch_file import is_torch_file, read_tree
from unrolled_export.readers.settings import Settings
from unrolled_export.vocabulary_files import read_vocabulary

SHARED = Path("../shared/models")

CODE = """
import torch
from torch import nn

class CharRNN(nn.Module):
    def __init__(self, tokens=7, cell="gru"):
        super().__init__()
        self.model = cell
        self.hidden_size = 4
        self.sizes = [3, 4]
        self.squash = torch.tanh
        self.step = nn.functional.relu
        self._hidden = (torch.ones(2), torch.ones(2))
        self.encoder = nn.Embedding(tokens, 3)
        self.rnn = nn.GRU(3, 4, 2) if cell == "gru" else nn.RNN(3, 4, nonlinearity="relu")
        self.norm = nn.LayerNorm(4, eps=1e-3)
        self.decoder = nn.Linear(4, tokens)
        self.register_buffer("scale", torch.full((2,), 3.0))
        self.register_buffer("mask", torch.ones(9), persistent=False)

    def forward(self, tokens):
        return self.decoder(self.norm(self.rnn(self.encoder(tokens))[0]))

class PlainCharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(100, 3)
        self.rnn = nn.GRU(3, 4)
        self.decoder = nn.Linear(4, 100)

class Dictionary:
    def __init__(self, words):
        self.word2idx = {word: index for index, word in enumerate(words)}
        self.idx2word = list(words)

class Words(list):
    pass
"""


@pytest.fixture
def code(tmp_path: Path) -> Iterator[ModuleType]:
    """Somebody's model.py, gone once the test ends."""
    (tmp_path / "model.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("model", tmp_path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["model"]


def save(path: Path, content: object, *, archive: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


def find(path: Path, *settings: str) -> FoundModel:
    chosen = Settings(settings, allow_pickle=True)
    return find_model(path, read_tree(path, True), chosen)


def numbers(tensor: torch.Tensor) -> NDArray[Any]:
    """What NumPy can hold of a tensor."""
    plain = tensor.detach()
    return np.asarray((plain.float() if plain.dtype is torch.bfloat16 else plain).numpy())


def check_same(found: Mapping[str, NDArray[Any]], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == numbers(tensor).dtype
        np.testing.assert_array_equal(found[name], numbers(tensor))


def language_model(vocabulary: int = 7) -> nn.ModuleDict:
    torch.manual_seed(1)
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(vocabulary, 3),
            "lstm": nn.LSTM(3, 4, 2),
            "fc": nn.Linear(4, vocabulary),
        }
    )


TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_are_those_that_torch_reads(archive: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    base = torch.randn(6, 5)
    content = {str(kind): (base * 9).to(kind) for kind in TYPES} | {
        "transposed": base.t(),
        "column": base[:, 2],
        "part": base[2:4, 1:5:2],
        "flat": base.view(-1)[7:],
        "scalar": base[1, 1],
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(3)),
        "half of bfloat16": torch.randn(8).to(torch.bfloat16)[3:],
    }
    path = save(tmp_path / "model.bin", content, archive=archive)
    tree = read_tree(path, False)
    assert isinstance(tree, dict)
    check_same(
        {name: tensor.load() for name, tensor in tree.items()}, torch.load(path, weights_only=True)
    )
    assert tree["transposed"].storage is tree["column"].storage


def test_types_that_only_archives_hold(tmp_path: Path) -> None:
    content = {
        str(kind): torch.arange(5).to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)
    }
    tree = read_tree(save(tmp_path / "model.pt", content), False)
    assert isinstance(tree, dict)
    check_same({name: tensor.load() for name, tensor in tree.items()}, content)


def test_an_archive_of_a_big_endian_machine(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    whole = save(tmp_path / "little.pt", {"a": torch.tensor(values)})
    turned = tmp_path / "big.pt"
    with zipfile.ZipFile(whole) as little, zipfile.ZipFile(turned, "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif name.endswith("data/0"):
                content = values.astype(">f4").tobytes()
            big.writestr(name, content)
    tree = read_tree(turned, False)
    assert isinstance(tree, dict)
    np.testing.assert_array_equal(tree["a"].load(), values)
    assert torch.load(turned, weights_only=True)["a"].tolist() == values.tolist()


def test_a_view_of_a_storage_in_a_legacy_file(tmp_path: Path) -> None:
    """Releases before 0.4 saved views of storages; the last part of the persistent id."""
    path = save(tmp_path / "model.pt", {"a": torch.arange(9.0)}, archive=False)
    plain = path.read_bytes()
    old = b"K\tNtq"
    assert plain.count(old) == 1
    # (root key, ..., 9, (view key, 4, 5)) and a tensor of the 5 numbers of the view.
    viewed = plain.replace(old, b"K\tX\x01\x00\x00\x00vK\x04K\x05\x87tq")
    viewed = viewed.replace(b"K\t\x85q", b"K\x05\x85q")
    path.write_bytes(viewed)
    tree = read_tree(path, False)
    assert isinstance(tree, dict)
    assert tree["a"].load().tolist() == [4, 5, 6, 7, 8]
    assert torch.load(path, weights_only=True)["a"].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickled_module(archive: bool, code: ModuleType, tmp_path: Path) -> None:
    model = code.CharRNN()
    path = save(tmp_path / "model.pt", model, archive=archive)
    expected = model.state_dict()
    del sys.modules["model"]
    found = find(path)
    sys.modules["model"] = code
    check_same(found.arrays, expected)
    names = {name: module.class_name for name, module in found.modules.items()}
    assert list(names.items()) == [
        *(("", "CharRNN"), ("encoder", "Embedding"), ("rnn", "GRU")),
        *(("norm", "LayerNorm"), ("decoder", "Linear")),
    ]
    assert found.modules["norm"].attributes["eps"] == 1e-3
    assert found.modules["norm"].attributes["normalized_shape"] == (4,)
    assert found.modules["rnn"].attributes["num_layers"] == 2
    own = found.modules[""].attributes
    assert (own["model"], own["hidden_size"], own["sizes"]) == ("gru", 4, (3, 4))
    assert own["step"] == "torch.nn.functional.relu"
    assert "_hidden" not in own


class OldPickler(pickle._Pickler):
    """Writes tensors and parameters as releases before 0.4 did."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return nn.Parameter, (value.data,), (True, False, collections.OrderedDict())
        if isinstance(value, torch.Tensor):
            place = (value.storage_offset(), tuple(value.size()), value.stride())
            storage: Any = value._typed_storage()  # type: ignore[no-untyped-call]
            return torch._utils._rebuild_tensor, (storage, *place)
        return NotImplemented


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_module_of_an_old_release(code: ModuleType, tmp_path: Path) -> None:
    model = code.CharRNN()
    old = ModuleType("old")
    old.__dict__.update(Pickler=OldPickler, dump=pickle.dump)
    path = tmp_path / "model.pt"
    torch.save(model, path, pickle_module=old, _use_new_zipfile_serialization=False)
    assert b"_rebuild_parameter" not in path.read_bytes()
    check_same(find(path).arrays, model.state_dict())


def test_a_pickled_module_needs_permission(code: ModuleType, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", code.CharRNN())
    with pytest.raises(PickleNeeded, match=r"model\.CharRNN.*--allow-pickle") as refused:
        PytorchFile().read(path, Settings())
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_torchscript_archive(code: ModuleType, tmp_path: Path) -> None:
    """Its classes are TorchScript's own, which no pickle could run: no permission is needed."""
    model = code.CharRNN(cell="rnn")
    traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
        model, torch.zeros(5, 1, dtype=torch.int64)
    )
    traced.save(tmp_path / "model.pt")
    tree = read_tree(tmp_path / "model.pt", False)
    found = find_model(tmp_path / "model.pt", tree, Settings())
    expected = dict(model.state_dict())
    check_same({name: found.arrays[name] for name in expected}, expected)
    assert found.modules["rnn"].class_name == "RNN"
    assert found.is_script


WRAPPED = ("archive", "optimizer", "list", "lightning", "parallel", "compiled", "deep", "namespace")


def wrapped(form: str, model: nn.Module) -> object:
    state = model.state_dict()
    run = {"epoch": 3, "loss": 0.5, "args": argparse.Namespace(rnn_type="LSTM", tied=False)}
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    forms: dict[str, object] = {
        "archive": state,
        "optimizer": {**run, "model_state_dict": model.state_dict(), "o": optimizer.state_dict()},
        "list": [model.state_dict(), {"exp_avg": model.state_dict()}, optimizer.state_dict()],
        "lightning": {
            "state_dict": {f"model.net.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": {"rnn_type": "LSTM", "nested": {"n_layers": 2}},
            "callbacks": {"checkpoint": {"best": 0.5}},
        },
        "parallel": {**run, "net": {f"module.{name}": value for name, value in state.items()}},
        "compiled": {f"_orig_mod.module.{name}": value for name, value in state.items()},
        "deep": {"a": [{"b": ({"c": state},)}]},
        "namespace": {"args": argparse.Namespace(n_layers=2), "weights": state},
    }
    return forms[form]


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("form", WRAPPED)
def test_a_state_dict_wherever_it_lies(form: str, archive: bool, tmp_path: Path) -> None:
    model = language_model()
    content = wrapped(form, model)
    found = find(save(tmp_path / "model.pt", content, archive=archive))
    check_same(found.arrays, model.state_dict())
    assert not found.modules


def test_hints_lie_beside_the_model(tmp_path: Path) -> None:
    model = language_model()
    path = save(tmp_path / "model.pt", wrapped("lightning", model))
    expected = {
        "hyper_parameters.rnn_type": "LSTM",
        "hyper_parameters.nested.n_layers": 2,
        "callbacks.checkpoint.best": 0.5,
    }
    assert expected.items() <= find(path).hints.items()
    path = save(tmp_path / "other.pt", wrapped("optimizer", model))
    expected = {"epoch": 3, "args.rnn_type": "LSTM", "args.tied": False}
    assert expected.items() <= find(path).hints.items()


def test_a_whole_training_run(code: ModuleType, tmp_path: Path) -> None:
    """As awd-lstm-lm saves it: model, loss and optimizer, all pickled."""
    model = code.CharRNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    path = save(tmp_path / "model.pt", [model, nn.CrossEntropyLoss(), optimizer])
    check_same(find(path).arrays, model.state_dict())


def test_wrapped_modules(code: ModuleType, tmp_path: Path) -> None:
    model = code.CharRNN()
    found = find(save(tmp_path / "model.pt", {"model": nn.DataParallel(model), "step": 3}))
    check_same(found.arrays, model.state_dict())
    assert found.modules[""].class_name == "CharRNN"
    assert found.place == "model"
    assert found.hints == {"step": 3}


def test_parts_that_are_saved_side_by_side(tmp_path: Path) -> None:
    model = language_model()
    content = {name: part.state_dict() for name, part in model.items()} | {"epoch": 1}
    check_same(find(save(tmp_path / "model.pt", content)).arrays, model.state_dict())
    found = find(save(tmp_path / "model.pt", {"parts": dict(model.items()), "epoch": 1}))
    check_same(found.arrays, model.state_dict())
    assert found.modules["lstm"].class_name == "LSTM"
    assert found.hints == {"epoch": 1}


def test_a_model_saved_twice_is_one(code: ModuleType, tmp_path: Path) -> None:
    model = code.CharRNN()
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find(save(tmp_path / "model.pt", {"best": best, "model": model}))
    assert found.place == "model"


def test_several_models_are_asked_about(tmp_path: Path) -> None:
    first, second = language_model(7).state_dict(), language_model(8).state_dict()
    path = save(tmp_path / "model.pt", {"generator": first, "other": {"critic": second}})
    with pytest.raises(SettingNeeded) as needed:
        find(path)
    assert needed.value.key == "model"
    assert set(needed.value.choices) == {"generator", "other.critic"}
    check_same(find(path, "model=other.critic").arrays, second)


ODD: dict[str, tuple[torch.Tensor, str]] = {
    "sparse": (torch.eye(3).to_sparse(), "sparse tensor"),
    "meta": (torch.zeros(3, 3, device="meta"), "tensor without data"),
    "expanded": (torch.zeros(3, 1).expand(3, 1000), "repeats the numbers of its storage"),
    "narrow": (torch.zeros(3).to(torch.float8_e4m3fn), "tensor of float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_other_kinds_are_named(kind: str, tmp_path: Path) -> None:
    tensor, expected = ODD[kind]
    path = save(tmp_path / "model.pt", {**language_model().state_dict(), "fc.extra": tensor})
    with pytest.raises(CheckpointError, match=rf"'fc\.extra' is a .*{expected}"):
        find(path)
    beside = {"model": language_model().state_dict(), "batch": tensor}
    check_same(find(save(path, beside)).arrays, language_model().state_dict())


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["tensors", "arrays", "fortran"])
def test_plain_pickles(kind: str, protocol: int, tmp_path: Path) -> None:
    state = language_model().state_dict()
    content: Mapping[str, object] = state
    if kind != "tensors":
        arrange = np.asfortranarray if kind == "fortran" else np.ascontiguousarray
        content = {name: arrange(value.numpy()) for name, value in state.items()}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"weights": content, "size": np.int64(4)}, protocol))
    assert is_torch_file(path)
    found = find_model(path, read_tree(path, False), Settings())
    check_same(found.arrays, state)
    assert found.hints["size"] == 4


def test_values_of_the_standard_library(tmp_path: Path, code: ModuleType) -> None:
    content = {
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(int, a=1),
        "counter": collections.Counter("aab"),
        "bytes": [b"\xff\x00", bytearray(b"\x01")],
        "words": code.Words("ab"),
        "set": {1},
        "nested": {(1, "a"): None, 2.5: 1 << 80},
        "text": np.array(["a", "bc"]),
        "objects": np.array(["a", None], dtype=object),
    }
    for protocol in (0, 2, 4, 5):
        path = tmp_path / "values.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        tree = read_tree(path, True)
        assert isinstance(tree, dict)
        assert [tree["ordered"], tree["default"]] == [{"a": 1}, {"a": 1}]
        assert tree["counter"] == {"a": 2, "b": 1}
        assert tree["bytes"] == [b"\xff\x00", b"\x01"]
        assert (tree["words"].class_name, tree["words"].items) == ("model.Words", ["a", "b"])
        assert isinstance(tree["set"], Opaque)
        assert tree["nested"] == content["nested"]
        assert tree["text"].load().tolist() == ["a", "bc"]
        assert isinstance(tree["objects"], NumpyArray)
        assert tree["objects"].items == ["a", None]


def test_what_is_no_file_of_torch(tmp_path: Path) -> None:
    others = {
        "model.keras": io.BytesIO(),
        "weights.npz": io.BytesIO(),
        "weights.pt": io.BytesIO(b"\x89HDF\r\n\x1a\n" + bytes(600)),
        "weights.bin": io.BytesIO(np.arange(99, dtype=np.float32).tobytes()),
        "model.onnx": io.BytesIO(b"\x08\x08\x12\x07pytorch"),
    }
    with zipfile.ZipFile(others["model.keras"], "w") as archive:
        archive.writestr("config.json", "{}")
    np.savez(others["weights.npz"], a=np.zeros(3))
    for name, content in others.items():
        (tmp_path / name).write_bytes(content.getvalue())
        assert not PytorchFile().accepts(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.dat", "model.bin", "model.ckpt", "m.pth.tar"])
@pytest.mark.parametrize("archive", [True, False])
def test_any_suffix_will_do(name: str, archive: bool, tmp_path: Path) -> None:
    path = save(tmp_path / name, language_model().state_dict(), archive=archive)
    assert PytorchFile().accepts(path)
    assert PytorchFile().read(path, Settings()).network.vocabulary_size == 7


@pytest.mark.parametrize("width", [640, 2048])
def test_the_content_tells_safetensors(width: int, tmp_path: Path) -> None:
    """With a header of any length: the first bytes of one of 640 are those of a pickle."""
    state = language_model().state_dict()
    path = tmp_path / "model.pt"
    saved = safetensors.torch.save(state)
    end = 8 + int.from_bytes(saved[:8], "little")
    header = json.dumps(json.loads(saved[8:end]), separators=(",", ":")).encode().ljust(width)
    path.write_bytes(len(header).to_bytes(8, "little") + header + saved[end:])
    checkpoint = read_checkpoint(path, Settings())
    assert checkpoint.reading.startswith("safetensors")
    assert np.array_equal(checkpoint.network.layers[0].weight_hh, state["lstm.weight_hh_l0"])


@pytest.mark.parametrize("archive", [True, False])
def test_the_content_tells_files_of_torch(archive: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", language_model().state_dict(), archive=archive)
    assert read_checkpoint(path, Settings()).reading.startswith("PyTorch state dict")


def test_a_safetensors_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors.torch.save(language_model().state_dict())
    for length in (0, 4, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors"):
            read_checkpoint(path, Settings())


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({token: index for index, token in enumerate("gfedcba")}))


def _with_numbers(path: Path) -> None:
    save(path, {"itos": list("gfedcba"), "counts": torch.arange(7)})


def _array(path: Path) -> None:
    np.save(path, np.array(list("gfedcba")))


BESIDE = {"char2idx.pkl": _pickled, "vocab.pt": _with_numbers, "vocab.npy": _array}


@pytest.mark.parametrize("name", BESIDE)
def test_a_folder_with_a_model_and_its_vocabulary(name: str, tmp_path: Path) -> None:
    save(tmp_path / "model.pt", language_model().state_dict())
    BESIDE[name](tmp_path / name)
    checkpoint = read_checkpoint(tmp_path, Settings())
    assert checkpoint.files == (tmp_path / "model.pt", tmp_path / name)
    assert checkpoint.vocabulary_file == tmp_path / name
    assert read_vocabulary(tmp_path / name, 7) == tuple("gfedcba")


SAID = {
    "at the top": {"residual": True},
    "further in": {"model": {"args": {"use_residual": 1}}},
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_config_beside_the_model(name: str, said: str, tmp_path: Path) -> None:
    state = language_model().state_dict()
    if name == "model.pt":
        save(tmp_path / name, state)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    config = tmp_path / "config.json"
    for agrees in ({"hidden_size": 4, "num_layers": 2, "residual": False}, ["residual"], 3):
        config.write_text(json.dumps(agrees))
        read_checkpoint(tmp_path, Settings())
    config.write_text(json.dumps(SAID[said]))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"config\.json.* has (use_)?residual=") as caught:
            read_checkpoint(path, Settings())
        assert "adds earlier values to later ones" in str(caught.value)
    config.write_text("{no JSON")
    read_checkpoint(tmp_path / name, Settings())


@pytest.mark.parametrize(
    ("key", "value"),
    [("residual", "true"), ("hidden_size", "99"), ("config", json.dumps({"residual": True}))],
)
def test_metadata_of_safetensors(key: str, value: str, tmp_path: Path) -> None:
    path, state = tmp_path / "model.safetensors", language_model().state_dict()
    safetensors.torch.save_file(state, path, {"format": "pt", "hidden_size": "4"})
    read_checkpoint(path, Settings())
    safetensors.torch.save_file(state, path, {"format": "pt", key: value})
    with pytest.raises(CheckpointError, match=r"metadata.* has (residual=True|hidden_size=99)"):
        read_checkpoint(path, Settings())


def test_a_folder_with_two_models(tmp_path: Path) -> None:
    for name in ("best.pt", "last.pt"):
        save(tmp_path / name, language_model().state_dict())
    with pytest.raises(CheckpointError, match=r"more than one checkpoint \(best\.pt, last\.pt\)"):
        read_checkpoint(tmp_path, Settings())


def test_a_tar_archive_of_the_first_releases(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "model.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    assert PytorchFile().accepts(path)
    with pytest.raises(CheckpointError, match=r"tar archive of torch 0\.1"):
        PytorchFile().read(path, Settings())


def test_a_vocabulary_fixed_by_the_family(code: ModuleType, tmp_path: Path) -> None:
    model = code.PlainCharRNN()
    model.__class__.__name__ = model.__class__.__qualname__ = "CharRNN"
    sys.modules["model"].__dict__["CharRNN"] = code.PlainCharRNN
    path = save(tmp_path / "model.pt", model)
    checkpoint = PytorchFile().read(path, Settings(allow_pickle=True))
    assert checkpoint.vocabulary is not None
    assert "".join(checkpoint.vocabulary).startswith("0123456789abc")
    assert "".join(checkpoint.vocabulary).endswith("~ \t\n\r\x0b\x0c")
    assert any("string.printable" in phrase for phrase in checkpoint.assumptions)
    nameless = PytorchFile().read(save(path, model.state_dict()), Settings())
    assert nameless.vocabulary is None


PUBLISHED = {
    "bimodal-lstm256x2-layernorm/model_fold_1_epochs_9.dat": ("_lstm.weight_hh_l1", (1024, 256)),
    "char-rnn-pytorch-gru100x4/RNN_4_layers.pt": ("rnn.weight_hh_l3", (300, 100)),
    "char-rnn-pytorch-gru256/model.pt": ("decoder.weight", (100, 256)),
    "chempleter-gru/model.pt": ("gru.weight_ih_l0", (1536, 256)),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="no published models beside the repository")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_hold_plausible_weights(name: str) -> None:
    found = find(SHARED / name)
    tensor, shape = PUBLISHED[name]
    assert found.arrays[tensor].shape == shape
    for array in found.arrays.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert 1e-4 < float(np.abs(array).mean()) < 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="no published models beside the repository")
def test_a_published_state_dict_is_what_torch_reads() -> None:
    path = SHARED / "chempleter-gru/model.pt"
    check_same(find(path).arrays, torch.load(path, weights_only=True))


def test_tensors_know_their_storage(tmp_path: Path) -> None:
    """Tied weights are one storage, held in memory once."""
    weights = torch.randn(5, 3)
    path = save(tmp_path / "model.pt", {"encoder.weight": weights, "decoder.weight": weights})
    tree = read_tree(path, False)
    assert isinstance(tree, dict)
    first, second = tree.values()
    assert isinstance(first, StoredTensor)
    assert np.shares_memory(first.load(), second.load())
