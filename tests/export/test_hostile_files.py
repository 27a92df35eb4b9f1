"""Pickles that would run code, take all memory, or are damaged: one line, and nothing happens."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from unrolled_export.errors import CheckpointError, ExportError, PickleNeeded
from unrolled_export.readers import read_checkpoint
from unrolled_export.readers.pytorch_files.checkpoint import PytorchFile
from unrolled_export.readers.pytorch_files.torch_file import read_tree
from unrolled_export.readers.settings import Settings

MEMORY = 2**30
"""What reading a file of a few kilobytes may take of the address space."""


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A bomb fails at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(path: Path, *, allow_pickle: bool = True) -> str:
    """The one line that reading ends with."""
    with pytest.raises(CheckpointError) as refused:
        PytorchFile().read(path, Settings(allow_pickle=allow_pickle))
    line = str(refused.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert len(line) < 1000
    return line


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def hostile_streams(command: str) -> dict[str, bytes]:
    """Pickles of protocol 2 that the standard unpickler would run `command` for."""
    argument, system = text(command), b"cos\nsystem\n"
    arguments = argument + b"\x85"
    return {
        "reduce": system + arguments + b"R",
        "reduce posix": b"cposix\nsystem\n" + arguments + b"R",
        "instance": b"(" + argument + b"ios\nsystem\n",
        "object": b"(csubprocess\nPopen\n" + argument + b"o",
        "new object": b"csubprocess\nPopen\n" + arguments + b"\x81",
        "new object with names": b"csubprocess\nPopen\n" + arguments + b"}\x92",
        "stack global": text("os") + text("system") + b"\x93" + arguments + b"R",
        "python 2": b"ccommands\ngetoutput\n" + arguments + b"R",
        "eval": b"c__builtin__\neval\n" + text(f"__import__('os').system({command!r})") + b"\x85R",
        "exec": b"cbuiltins\nexec\n" + text(f"import os; os.system({command!r})") + b"\x85R",
        "attributes": b"cbuiltins\ngetattr\ncos\npath\n" + text("os") + b"\x86R" + arguments + b"R",
        "attribute of a module": (
            b"cbuiltins\ngetattr\nc__builtin__\n__import__\n" + text("os") + b"\x85R"
            b"" + text("system") + b"\x86R" + arguments + b"R"
        ),
        "dotted name": text("torch") + text("serialization.os.system") + b"\x93" + arguments + b"R",
        "partial": b"cfunctools\npartial\n" + system + argument + b"\x86R)R",
        "map": b"c__builtin__\nmap\n" + system + argument + b"\x85\x86R",
        "reconstructor": b"ccopyreg\n_reconstructor\n" + system + b"c__builtin__\nobject\nN\x87R",
        "newobj": b"ccopyreg\n__newobj__\ncsubprocess\nPopen\n" + argument + b"\x86R",
        "state": (
            b"cmodel\nA\n)\x81}("
            + text("__setstate__")
            + system
            + b"ub"
            + argument
            + b"b0"
            + system
        ),
        "third party": b"cnumpy.testing._private.utils\nrunstring\n" + argument + b"}\x86R",
        "hub": b"ctorch.hub\nload\n" + arguments + b"R",
        "torch load": b"ctorch\nload\n" + arguments + b"R",
        "pip": b"cpip\nmain\n" + arguments + b"R",
        "compile": b"ctypes\nFunctionType\n" + arguments + b"R",
        "module of Python": b"crunpy\n_run_code\n" + arguments + b"R",
        "web browser": b"cwebbrowser\nopen\n" + arguments + b"R",
        "default factory": b"ccollections\ndefaultdict\n" + system + b"\x85R" + argument + b"N s",
        "key": b"}" + system + arguments + b"RNs",
        "registry": b"\x82\x01" + arguments + b"R",
        "registry of two bytes": b"\x83\x01\x01" + arguments + b"R",
        "registry of four bytes": b"\x84\x01\x01\x01\x01" + arguments + b"R",
        "persistent id": b"(" + text("storage") + system + arguments + b"R" + argument + b"NNtQ",
        "source of a class": b"(" + text("module") + system + b"NNtQ" + arguments + b"R",
        "in a tensor": (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + system + arguments + b"RK\x00)))tR"
        ),
        "in a parameter": (
            b"ctorch._utils\n_rebuild_parameter\n" + system + arguments + b"R\x88}\x87R"
        ),
        "subclass of a tensor": (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(" + system + b"ctorch\nTensor\n"
            b"" + arguments + b"NtR"
        ),
        "array": b"cnumpy.core.multiarray\n_reconstruct\n" + system + arguments + b"R\x85R",
    }


def in_archive(path: Path, stream: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(40))


def in_legacy(path: Path, stream: bytes) -> None:
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + stream)


def as_pickle(path: Path, stream: bytes) -> None:
    path.write_bytes(stream)


@pytest.mark.parametrize("write", [in_archive, in_legacy, as_pickle])
@pytest.mark.parametrize("allow_pickle", [True, False])
@pytest.mark.parametrize("case", hostile_streams(""))
def test_nothing_is_called(
    case: str, allow_pickle: bool, write: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    witness, path = tmp_path / "witness", tmp_path / "model.pt"
    write(path, b"\x80\x02" + hostile_streams(f"touch {witness}")[case] + b".")
    line = refusal(path, allow_pickle=allow_pickle)
    assert not witness.exists()
    assert "as a hostile file would" in line or "not known here" in line or "damaged" in line


NAMED = {
    "reduce posix": "asks for posix.system, as a hostile file would",
    "new object": "asks for subprocess.Popen, as a hostile file would",
    "eval": "asks for builtins.eval, as a hostile file would",
    "in a tensor": "asks for os.system, as a hostile file would",
    "third party": "asks to call numpy.testing._private.utils.runstring",
}


@pytest.mark.parametrize("case", NAMED)
def test_what_a_file_asks_for_is_named(case: str, tmp_path: Path) -> None:
    as_pickle(tmp_path / "a.pkl", b"\x80\x02" + hostile_streams("true")[case] + b".")
    assert NAMED[case] in refusal(tmp_path / "a.pkl")


def test_these_files_are_hostile_indeed(tmp_path: Path) -> None:
    """The standard unpickler runs the command: the cases above test something."""
    witness = tmp_path / "witness"
    stream = b"\x80\x02" + hostile_streams(f"touch {witness}")["reduce"] + b"."
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], input=stream, check=True)
    assert witness.exists()


class Reduced:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._reduced


@pytest.mark.parametrize("archive", [True, False])
def test_a_model_with_something_hostile_in_it(archive: bool, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "model.pt"
    content = {
        "state_dict": nn.LSTM(3, 4).state_dict(),
        "log": [{"deep": Reduced(os.system, f"touch {witness}")}],
    }
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert f"asks for {os.name}.system, as a hostile file would" in refusal(path)
    assert not witness.exists()


def repeated(count: int, part: bytes) -> bytes:
    return part * count


BOMBS: dict[str, bytes] = {
    "deep lists": repeated(200_000, b"]") + repeated(199_999, b"a"),
    "deep tuples": b")" + repeated(200_000, b"\x85"),
    "deep tuple as a key": b"})" + repeated(200_000, b"\x85") + b"Ns",
    "wide tuple as a key": b"})" + repeated(64, b"2\x86") + b"Ns",
    "deep objects": b"cmodel\nA\nq\x00)\x81" + b"q\x010h\x00h\x01\x85\x81" * 100_000,
    "deep states": b"cmodel\nA\nq\x00)\x81" + b"q\x010h\x00)\x81h\x01b" * 100_000,
    "doubled lists": b"]" + repeated(60, b"q\x00]q\x01(h\x00h\x00eh\x01"),
    "doubled tuples": b")" + repeated(60, b"2\x86"),
    "doubled in a set": b"c__builtin__\nset\n])" + repeated(60, b"2\x86") + b"a\x85R",
    "memo": b"Nr\xff\xff\xff\xff",
    "long text": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**40) + b"abc",
    "long byte array": b"\x96" + struct.pack("<Q", 2**33) + b"abc",
    "long frame": b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "long number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
    "many digits": b"L" + b"9" * 100_000 + b"L\n",
    "list that holds itself": b"]q\x002a",
    "map that holds itself": b"}q\x00" + text("a") + b"h\x00s",
    "bytes of a length": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "copies of text": b"c_codecs\nencode\n" + text("a" * 100_000) + text("latin1") + b"\x86q\x000"
    b"" + repeated(5000, b"c_codecs\nencode\nh\x00R"),
    "copies of a list": b"](" + repeated(20_000, b"N") + b"eq\x000"
    b"" + repeated(20_000, b"c__builtin__\nlist\nh\x00\x85R"),
    "states upon states": b"cmodel\nA\n)\x81}("
    b"" + b"".join(text(str(n)) + b"N" for n in range(5000)) + b"uq\x01b"
    b"" + repeated(20_000, b"h\x01b"),
    "array of nothing": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    b"C\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\n"
    + text("f8")
    + b"\x89\x88\x87R\x89C\x00tb",
    "text of a length": b"cnumpy\ndtype\n" + text("U999999999") + b"\x89\x88\x87R",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", BOMBS)
def test_bombs(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    as_pickle(path, b"\x80\x04" + BOMBS[case] + b".")
    assert path.stat().st_size < 2_000_000
    refusal(path)


TENSORS: dict[str, tuple[object, ...]] = {
    "beyond the end": (0, (11,), (1,)),
    "offset": (9, (2,), (1,)),
    "stride": (0, (2, 2), (1, 10)),
    "negative stride": (9, (2,), (-1,)),
    "negative size": (0, (-1, -5), (1, 1)),
    "huge": (0, (2**40, 2**40), (0, 0)),
    "overflow": (0, (2**31, 2**33), (2**31, 2**31)),
    "more strides than sizes": (0, (2,), (1, 1)),
    "many dimensions": (0, (1,) * 70, (1,) * 70),
    "a text": ("0", (2,), (1,)),
    "a fraction": (0, (2.0,), (1.0,)),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_lie_in_their_storage(case: str, tmp_path: Path) -> None:
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\ntQ"
    )
    shape = b"".join(pickle.dumps(part, 2)[2:-1] for part in TENSORS[case])
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"\x89NtR"
    in_archive(tmp_path / "model.pt", b"\x80\x02}" + text("rnn.weight_hh_l0") + tensor + b"s.")
    line = refusal(tmp_path / "model.pt")
    assert "damaged" in line or "repeats the numbers" in line


def test_storages_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\nNtq") == 1
    path.write_bytes(content.replace(b"K\nNtq", b"J\xff\xff\xff\x7fNtq"))
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["deep lists", "doubled lists"])
def test_bombs_in_place_of_a_storage(name: str, tmp_path: Path) -> None:
    """The list of storages of a legacy file holds names."""
    streams = b"\x80\x04}.", b"\x80\x04]" + BOMBS[name] + b"a."
    in_legacy(tmp_path / "model.pt", b"".join(streams))
    assert "damaged" in refusal(tmp_path / "model.pt")


def test_a_name_without_end(tmp_path: Path) -> None:
    name = "rnn.weight_hh_l0" + "x" * 10_000
    torch.save({name: torch.zeros(2, 2)}, tmp_path / "model.pt")
    assert "a name of 10,016 characters" in refusal(tmp_path / "model.pt")
    parts = [{f"{'a.' * 200_000}weight_hh_l{layer}": torch.zeros(2, 2)} for layer in range(2)]
    torch.save(parts, tmp_path / "model.pt")
    assert "a name of 400,012 characters" in refusal(tmp_path / "model.pt")


def test_a_compressed_archive(tmp_path: Path) -> None:
    """A few kilobytes of it could stand for gigabytes."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10_000_000))
    assert "compressed records" in refusal(path)


def test_modules_that_hold_one_another(tmp_path: Path) -> None:
    stream = b"cmodel\nA\n)\x81q\x00}(" + text("_modules") + b"}(" + text("a") + b"h\x00"
    stream += text("b") + b"h\x00u" + text("_parameters") + b"}ub"
    as_pickle(tmp_path / "model.pkl", b"\x80\x02" + stream + b".")
    assert "without end" in refusal(tmp_path / "model.pkl")


def test_names_that_would_garble_the_message(tmp_path: Path) -> None:
    as_pickle(tmp_path / "a.pkl", b"\x80\x04" + text("a\nb") + text("c\x1b[2J") + b"\x93)R.")
    assert "damaged" in refusal(tmp_path / "a.pkl")
    as_pickle(tmp_path / "b.pkl", b"\x80\x04" + text("a" * 5000) + text("B") + b"\x93)R.")
    assert "damaged" in refusal(tmp_path / "b.pkl")


def whole_files() -> dict[str, bytes]:
    torch.manual_seed(3)
    model = nn.ModuleDict({"emb": nn.Embedding(5, 2), "gru": nn.GRU(2, 2), "fc": nn.Linear(2, 5)})
    content = {"state_dict": model.state_dict(), "vocab": {c: i for i, c in enumerate("abcde")}}
    archive, legacy, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(content, archive)
    torch.save(model, legacy, _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    pickle.dump({"weights": arrays, "chars": np.array(list("abcde"))}, pickled, 4)
    text_form = pickle.dumps({"weights": model.state_dict(), "chars": list("abcde")}, 0)
    whole = {"archive": archive, "legacy": legacy, "pickled": pickled}
    return {name: file.getvalue() for name, file in whole.items()} | {"text": text_form}


WHOLE = whole_files()


def outcome(path: Path) -> str | None:
    """The message with which reading ends, None where it does not; anything else is a failure."""
    try:
        read_checkpoint(path, Settings(allow_pickle=True))
    except ExportError as error:
        message = str(error)
    else:
        return None
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("form", WHOLE)
def test_these_files_are_whole(form: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(WHOLE[form])
    assert outcome(tmp_path / "model.pt") is None


@pytest.mark.parametrize("form", WHOLE)
def test_cut_off_anywhere(form: str, tmp_path: Path) -> None:
    path, content = tmp_path / "model.pt", WHOLE[form]
    for length in {*range(0, len(content) - 1, max(1, len(content) // 200)), len(content) - 1}:
        path.write_bytes(content[:length])
        assert outcome(path) is not None


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", WHOLE)
def test_flipped_bits(form: str, seed: int, tmp_path: Path) -> None:
    """Each is read as something or refused; an archive, whose records have checksums, is refused
    or read as the same."""
    path, content, chance = tmp_path / "model.pt", WHOLE[form], random.Random(seed)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 3))):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        refused += outcome(path) is not None
    assert refused > 30


DIRECTORY: dict[str, tuple[bytes, int, bytes]] = {
    "a later version": (b"PK\x01\x02", 6, b"\xe6\x00"),
    "a name that is no text": (b"PK\x01\x02", 46, b"\xff"),
    "several disks": (b"PK\x06\x07", 16, b"\x02"),
    "an impossible date": (b"PK\x01\x02", 12, b"\xff\xff\xff\xff"),
    "no end": (b"PK\x05\x06", 0, b"\0"),
}
"""Parts of a zip archive's directory: where they begin, and what is put how far into them."""


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.keras"])
@pytest.mark.parametrize("damage", DIRECTORY)
def test_a_damaged_directory(damage: str, name: str, tmp_path: Path) -> None:
    signature, offset, garbage = DIRECTORY[damage]
    content = bytearray(WHOLE["archive"])
    place = content.index(signature) + offset
    content[place : place + len(garbage)] = garbage
    if damage == "a name that is no text":
        content[place - 46 + 9] |= 0x08
    (tmp_path / name).write_bytes(content)
    message = outcome(tmp_path / name)
    # Dates are of no interest, and torch itself reads the file.
    assert (message is None) == (damage == "an impossible date" and name != "model.keras")


@pytest.mark.parametrize("name", ["model.pt", "model.bin.pt", "model.pkl", "model.safetensors"])
def test_what_a_download_left_instead(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a pointer of Git LFS" in (outcome(path) or "")
    path.write_text("\n<!DOCTYPE HTML><html><body>Not found</body></html>")
    assert "a web page" in (outcome(path) or "")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_opcodes(seed: int, tmp_path: Path) -> None:
    """Pieces of real pickles in a random order: every operation meets every kind of value."""
    chance = random.Random(seed)
    pieces = [*hostile_streams("false").values(), *(stream[:200] for stream in BOMBS.values())]
    operations = [
        bytes([code]) for code in b"()]}0b1RaesudotlQ2\x81\x85\x86\x87\x8f\x90\x91\x93\x94"
    ]
    for _ in range(1000):
        parts = chance.choices(pieces, k=2) + chance.choices(operations, k=12)
        chance.shuffle(parts)
        as_pickle(tmp_path / "model.pkl", b"\x80\x04" + b"".join(parts) + b".")
        assert outcome(tmp_path / "model.pkl") is not None


def test_permission_is_asked_for_once_nothing_hostile_is_found(tmp_path: Path) -> None:
    as_pickle(tmp_path / "a.pkl", b"\x80\x02cmodel\nA\n)\x81cos\nsystem\n\x86.")
    assert "hostile" in refusal(tmp_path / "a.pkl", allow_pickle=False)
    as_pickle(tmp_path / "a.pkl", b"\x80\x02cmodel\nA\n)\x81.")
    with pytest.raises(PickleNeeded, match=r"model\.A"):
        read_tree(tmp_path / "a.pkl", False)
