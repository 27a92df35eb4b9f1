"""A model that cannot be loaded is listed with the reason, and the others serve."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from support.calls import SECONDS, Refusal, Stubs, connected, refused
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled.fingerprint import fingerprint
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled.v1.model_pb2 import GetModelRequest, ListModelsRequest, Model, Vocabulary
from unrolled.v1.session_pb2 import CreateSessionRequest
from unrolled_server.models import Entry, Models

READY, FAILED = Model.STATUS_READY, Model.STATUS_FAILED


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(content))


def sign(content: dict[str, Any]) -> None:
    """Give changed facts the fingerprint that belongs to them."""
    content["fingerprint"] = fingerprint(json_format.ParseDict(content, Model()))


def truncated(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def flipped(name: str, place: float) -> Callable[[Path], None]:
    """One bit of the byte at this share of the file's length."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return damage


def missing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewritten(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def empty(name: str) -> Callable[[Path], None]:
    return rewritten(name, b"")


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """The manifest after `change`, its fingerprint left as it was."""

    def damage(folder: Path) -> None:
        content = manifest_of(folder)
        change(content)
        write_manifest(folder, content)

    return damage


def resigned(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """The manifest after `change`, with the fingerprint that belongs to it."""

    def change_and_sign(content: dict[str, Any]) -> None:
        change(content)
        sign(content)

    return changed(change_and_sign)


def replaced(graph: bytes) -> Callable[[Path], None]:
    """Another engine.onnx, with the right length and checksum in the manifest."""

    def damage(folder: Path) -> None:
        (folder / "engine.onnx").write_bytes(graph)
        content = manifest_of(folder)
        (file,) = [file for file in content["files"] if file["name"] == "engine.onnx"]
        file["bytes"], file["sha256"] = len(graph), hashlib.sha256(graph).hexdigest()
        write_manifest(folder, content)

    return damage


def swap_graphs(folder: Path) -> None:
    replaced((folder / "model.onnx").read_bytes())(folder)


def other_character(content: dict[str, Any]) -> None:
    content["vocabulary"]["tokens"][2] = base64.b64encode(b"~").decode()


def other_digit(content: dict[str, Any]) -> None:
    digits = content["files"][0]["sha256"]
    content["files"][0]["sha256"] = ("1" if digits[0] == "0" else "0") + digits[1:]


def add_file(name: str) -> Callable[[dict[str, Any]], None]:
    entry = {"name": name, "sha256": hashlib.sha256(b"").hexdigest(), "bytes": "0"}
    return lambda content: content["files"].append(entry)


def forget_engine(content: dict[str, Any]) -> None:
    content["files"] = [file for file in content["files"] if file["name"] != "engine.onnx"]


def cut_json(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().rstrip().removesuffix("}"))


def nested_json(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"a":' * 100_000)


def without_version(folder: Path) -> None:
    shutil.rmtree(folder)


def in_another_folder(folder: Path) -> None:
    folder.rename(folder.with_name("7"))


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "engine-truncated": (truncated("engine.onnx"), ("engine.onnx",)),
    "engine-empty": (empty("engine.onnx"), ("engine.onnx",)),
    "engine-flipped-early": (flipped("engine.onnx", 0.01), ("engine.onnx", "SHA-256")),
    "engine-flipped-middle": (flipped("engine.onnx", 0.5), ("engine.onnx", "SHA-256")),
    "engine-flipped-last": (flipped("engine.onnx", 1.0), ("engine.onnx", "SHA-256")),
    "engine-missing": (missing("engine.onnx"), ("engine.onnx", "no such file")),
    "engine-garbage": (replaced(b"not a graph"), ("engine.onnx",)),
    "engine-other-graph": (swap_graphs, ("engine.onnx",)),
    "portable-truncated": (truncated("model.onnx"), ("model.onnx",)),
    "portable-flipped": (flipped("model.onnx", 0.5), ("model.onnx", "SHA-256")),
    "portable-missing": (missing("model.onnx"), ("model.onnx", "no such file")),
    "manifest-missing": (missing("manifest.json"), ("manifest.json", "no such file")),
    "manifest-empty": (empty("manifest.json"), ("manifest.json",)),
    "manifest-truncated": (truncated("manifest.json"), ("manifest.json",)),
    "manifest-unclosed": (cut_json, ("manifest.json",)),
    "manifest-nested": (nested_json, ("manifest.json",)),
    "manifest-first-bit": (flipped("manifest.json", 0.0), ("manifest.json",)),
    "manifest-character": (changed(other_character), ("manifest.json", "fingerprint")),
    "manifest-digit": (changed(other_digit), ("engine.onnx", "SHA-256")),
    "manifest-fingerprint": (
        changed(lambda c: c.update(fingerprint="0" * 64)),
        ("manifest.json", "fingerprint"),
    ),
    "manifest-cell": (changed(lambda c: c.update(cell="CELL_GRU")), ("manifest.json",)),
    "manifest-bytes": (
        changed(lambda c: c["files"][0].update(bytes="1")),
        ("engine.onnx", "1"),
    ),
    "manifest-without-engine": (changed(forget_engine), ("manifest.json", "engine.onnx")),
    "manifest-not-utf8": (
        rewritten("manifest.json", b'{"source": "\xff"}'),
        ("manifest.json",),
    ),
    "manifest-wrong-type": (changed(lambda c: c.update(parameters="many")), ("manifest.json",)),
    "manifest-of-another": (
        changed(lambda c: c.update(name="somebody")),
        ("manifest.json", "somebody"),
    ),
    "file-outside": (changed(add_file("../../escape")), ("manifest.json", "../../escape")),
    "file-absolute": (changed(add_file("/etc/hostname")), ("manifest.json", "/etc/hostname")),
    "file-itself": (changed(add_file("")), ("manifest.json",)),
    "file-with-null": (changed(add_file("a\0b")), ("manifest.json",)),
    "file-not-there": (changed(add_file("more.bin")), ("more.bin", "no such file")),
    "vocabulary-kind": (
        resigned(lambda c: c["vocabulary"].update(kind="KIND_WORD")),
        ("manifest.json", "KIND_WORD"),
    ),
    "vocabulary-not-utf8": (
        resigned(lambda c: c["vocabulary"]["tokens"].__setitem__(0, "/w==")),
        ("manifest.json", "vocabulary"),
    ),
    "vocabulary-too-long": (
        resigned(lambda c: c["vocabulary"]["tokens"].append("ZA==")),
        ("engine.onnx", "logprobs"),
    ),
    "vocabulary-start": (
        resigned(lambda c: c["vocabulary"].update(startToken=4)),
        ("manifest.json", "start_token"),
    ),
    "vocabulary-end": (
        resigned(lambda c: c["vocabulary"].update(endTokens=[3, -1])),
        ("manifest.json", "end_tokens"),
    ),
    "vocabulary-unknown": (
        resigned(lambda c: c["vocabulary"].update(unknownToken=99)),
        ("manifest.json", "unknown_token"),
    ),
    "graph-revision": (
        resigned(lambda c: c.update(graphRevision=99)),
        ("manifest.json", "graph_revision", "99"),
    ),
    "state-size": (
        resigned(lambda c: c["states"][0].update(shape=["7"])),
        ("engine.onnx", "h_00"),
    ),
    "state-name": (
        resigned(lambda c: c["states"][0].update(input="nope")),
        ("engine.onnx", "nope"),
    ),
    "state-shape": (
        resigned(lambda c: c["states"][0].update(shape=["2", "12"])),
        ("manifest.json", "states"),
    ),
    "no-version": (without_version, ("no version folder", "manifest.json")),
    "other-version": (in_another_folder, ("manifest.json", "7")),
}


@dataclass(frozen=True)
class Damaged:
    """A server on a repository of which most is damaged."""

    server: RunningServer
    stubs: Stubs


@pytest.fixture(scope="module")
def damaged(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damaged]:
    path = tmp_path_factory.mktemp("damaged")
    shutil.copytree(repository.path / "lstm", path / "lstm")
    for name, (damage, _) in DAMAGES.items():
        add_version(repository, path / name, 1)
        damage(path / name / "1")
    add_versions(repository, path)
    (path / "README").write_text("no model")
    (path / ".hidden").mkdir()
    (path / os.fsdecode(b"latin-\xe9")).mkdir()
    with running_server(path) as server, connected(server.address) as stubs:
        yield Damaged(server, stubs)


def add_version(repository: Repository, model: Path, version: int) -> Path:
    """The model "rnn" under another name and version; returns its folder."""
    folder = model / str(version)
    shutil.copytree(repository.path / "rnn" / "1", folder)
    content = manifest_of(folder)
    content["name"], content["version"] = model.name, str(version)
    write_manifest(folder, content)
    return folder


def add_versions(repository: Repository, path: Path) -> None:
    """Models of which more than one version is there."""
    for version in (1, 2, 10):
        add_version(repository, path / "many", version)
    for version in (1, 2, 3):
        folder = add_version(repository, path / "half", version)
        if version != 2:
            (folder / "engine.onnx").unlink()
    add_version(repository, path / "stray", 1)
    for name in ("01", "0", "-1", "new", "99999999999999999999", "²", "٢"):
        (path / "stray" / name).mkdir()


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_listed_with_the_reason(damaged: Damaged, name: str) -> None:
    model = damaged.stubs.models.GetModel(GetModelRequest(name=name), timeout=SECONDS).model
    assert (model.name, model.status) == (name, FAILED)
    assert [word for word in DAMAGES[name][1] if word not in model.status_detail] == []
    assert "\n" not in model.status_detail


@pytest.mark.parametrize("name", DAMAGES)
def test_each_failure_is_one_line_of_the_log(damaged: Damaged, name: str) -> None:
    lines = [line for line in damaged.server.log if f" model={name}/" in line]
    assert len(lines) == 1
    assert " level=error event=model_failed " in lines[0]
    assert DAMAGES[name][1][0] in lines[0]


def test_every_model_is_listed_once_in_order(damaged: Damaged) -> None:
    models = damaged.stubs.models.ListModels(ListModelsRequest()).models
    listed = [(model.name, model.version) for model in models]
    assert listed == sorted(set(listed))
    assert set(DAMAGES) < {name for name, _ in listed}
    ready = [(model.name, model.version) for model in models if model.status == READY]
    assert ready == [
        ("half", 2), ("lstm", 1), ("many", 1), ("many", 2), ("many", 10), ("stray", 1)
    ]  # fmt: skip


def test_what_is_listed_is_what_there_is(damaged: Damaged) -> None:
    models = damaged.stubs.models
    everything = models.ListModels(ListModelsRequest()).models
    (listed,) = (each for each in everything if each.name == "lstm")
    assert listed == models.GetModel(GetModelRequest(name="lstm")).model
    assert len(listed.vocabulary.tokens) == listed.vocabulary.size


def test_a_long_list_leaves_tokens_out() -> None:
    """That a client of gRPC with its defaults can take it."""
    words = [b"%07d" % number for number in range(400_000)]
    large, small = (
        Model(name=name, version=1, vocabulary=Vocabulary(size=len(tokens), tokens=tokens))
        for name, tokens in (("large", words), ("small", words[:3]))
    )
    assert Models([Entry(small, None)]).listed == [small]
    both = Models([Entry(small, None), Entry(large, None)])
    assert [each.vocabulary.size for each in both.listed] == [400_000, 3]
    assert not any(each.vocabulary.tokens for each in both.listed)
    assert both.manifest("large").vocabulary.tokens == words


def test_a_folder_whose_name_is_not_utf8_is_listed(damaged: Damaged) -> None:
    models = damaged.stubs.models.ListModels(ListModelsRequest()).models
    (model,) = [model for model in models if model.name.startswith("latin-")]
    assert model.status == FAILED


def test_the_others_serve(damaged: Damaged) -> None:
    request = CompleteRequest(model="lstm", prompt="a", max_tokens=3)
    assert len(damaged.stubs.completions.Complete(request, timeout=SECONDS).text) == 3


@pytest.mark.parametrize("name", ["engine-flipped-middle", "engine-flipped-middle/1", "no-version"])
def test_a_turn_of_a_failed_model_is_told_why(damaged: Damaged, name: str) -> None:
    stubs = damaged.stubs
    refusals: list[Refusal] = [
        refused(stubs.completions.Complete, CompleteRequest(model=name, prompt="a")),
        refused(stubs.completions.StreamComplete, CompleteRequest(model=name, prompt="a")),
        refused(stubs.sessions.CreateSession, CreateSessionRequest(model=name)),
    ]
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert refusal.metadata == {"model": name}
        assert "failed to load" in refusal.message


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("many", 10, READY),
        ("many/2", 2, READY),
        ("half", 2, READY),
        ("half/3", 3, FAILED),
        ("stray", 1, READY),
    ],
)
def test_a_name_is_its_latest_ready_version(
    damaged: Damaged, name: str, version: int, status: Model.Status
) -> None:
    model = damaged.stubs.models.GetModel(GetModelRequest(name=name)).model
    assert (model.version, model.status) == (version, status)
    if status == READY:
        request = CompleteRequest(model=name, prompt="a", max_tokens=1)
        answer = damaged.stubs.completions.Complete(request, timeout=SECONDS)
        assert answer.outcome.model == f"{model.name}/{version}"


def test_a_version_that_failed_takes_no_turns(damaged: Damaged) -> None:
    request = CompleteRequest(model="half/3", prompt="a")
    assert refused(damaged.stubs.completions.Complete, request).metadata == {"model": "half/3"}


def test_the_metrics_tell_ready_from_failed(damaged: Damaged) -> None:
    metrics = Metrics(damaged.server.metrics_url)
    assert metrics.value("unrolled_model_info", status="ready") == 6
    assert metrics.value("unrolled_model_info", model="engine-missing/1", status="failed") == 1


def test_a_ready_model_is_described_as_exported(repository: Repository, damaged: Damaged) -> None:
    model = damaged.stubs.models.GetModel(GetModelRequest(name="lstm")).model
    path = repository.path / "lstm" / "1" / "manifest.json"
    exported = json_format.Parse(path.read_text(), Model())
    exported.status = READY
    assert model == exported


def test_a_repository_without_models_serves_none(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, connected(server.address) as stubs:
        assert not stubs.models.ListModels(ListModelsRequest(), timeout=SECONDS).models
        refusal = refused(stubs.completions.Complete, CompleteRequest(model="lstm", prompt="a"))
        assert refusal.code == grpc.StatusCode.NOT_FOUND.name
