"""Models of every kind of vocabulary behind a real server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from safetensors.numpy import save_file
from support.calls import SECONDS, Stubs, connected, refused
from support.checkpoints import state_dict
from support.sealed import key_file
from support.server import running_server
from support.tokenizers_ import processor, sentencepiece_model, tokenizer
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse, ScoreRequest
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import ExportSessionRequest, ImportSessionRequest
from unrolled_export.__main__ import main

WORDS = ("<eos>", "<unk>", "the", "of", "and", "cat", "sat", "on", "naïve", "mat", ".")
SELFIES = ("[nop]", "[C]", "[=C]", "[Branch1]", "[O]")


@dataclass(frozen=True)
class Served:
    """A model to be served, and what its tokens stand for."""

    content: bytes | None
    """Of its vocabulary file."""
    size: int
    text: Callable[[list[int]], str]
    """The text of a whole sequence."""
    prompt: str
    rest: str
    """What may follow the prompt, so that both are the tokens of the whole."""
    options: tuple[str, ...] = ()


def written(ids: Sequence[int]) -> str:
    """The lines of words that tokens are."""
    ends = "".join("\n" if index == 0 else f" {WORDS[index]}" for index in ids)
    return ends.replace("\n ", "\n").removeprefix(" ")


def tokenizer_case(name: str) -> Served:
    made = tokenizer(name)
    content, size = made.to_str().encode(), made.get_vocab_size()
    return Served(content, size, lambda ids: made.decode(ids), "the cat", " sat on")


def sentencepiece_case(name: str) -> Served:
    model = sentencepiece_model(name)
    pieces = processor(model)
    size = pieces.get_piece_size()
    return Served(model, size, lambda ids: str(pieces.decode(ids)), "the cat", " sat on")


def listed(
    tokens: Sequence[str], text: Callable[[list[int]], str], prompt: str, rest: str
) -> Served:
    return Served(json.dumps(tokens).encode(), len(tokens), text, prompt, rest)


CASES = {
    "words": listed(WORDS, written, "the cat", "  sat on\nthe mat"),
    "groups": listed(SELFIES, lambda ids: "".join(SELFIES[i] for i in ids), "[C][=C]", "[O]"),
    "bytes": Served(
        None,
        256,
        lambda ids: bytes(ids).decode(errors="replace"),
        "naïve",
        " €",
        ("--set", "vocabulary=byte"),
    ),
    "byte-level": tokenizer_case("byte-level"),
    "word-piece": tokenizer_case("word-piece"),
    "metaspace": tokenizer_case("metaspace"),
    "sentencepiece": sentencepiece_case("bpe"),
}
NAMES = tuple(CASES)


def export(name: str, case: Served, folder: Path, repository: Path) -> None:
    checkpoint, vocabulary = folder / f"{name}.safetensors", folder / f"{name}.vocabulary"
    arrays = state_dict(vocabulary=case.size)
    # Far from uniform, so that two sequences differ by more than chance.
    save_file({key: 3 * array for key, array in arrays.items()}, checkpoint)
    options = [*case.options, "--start-token", "#0"]
    if case.content is not None:
        vocabulary.write_bytes(case.content)
        options += ["--vocab", str(vocabulary)]
    assert main(["convert", str(checkpoint), "--output", str(repository), *options]) == 0


def change_manifest(folder: Path, change: Callable[[model_pb2.Model], None]) -> None:
    """Change a manifest and sign it again."""
    path = folder / "manifest.json"
    model = json_format.Parse(path.read_text(), model_pb2.Model())
    model.name = folder.parent.name
    change(model)
    model.fingerprint = fingerprint(model)
    path.write_text(json_format.MessageToJson(model))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, repository = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("models")
    for name, case in CASES.items():
        export(name, case, folder, repository)
    return repository


@pytest.fixture(scope="module")
def stubs(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    repository = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(exported, repository)
    for name, (source, change) in DAMAGES.items():
        shutil.copytree(repository / source, repository / name)
        change_manifest(repository / name / "1", change)
    keys = key_file(tmp_path_factory.mktemp("keys") / "keys", "a")
    flags = ["--seal-key-file", str(keys)]
    with running_server(repository, *flags) as server, connected(server.address) as stubs:
        yield stubs


def complete(stubs: Stubs, **fields: Any) -> CompleteResponse:
    return stubs.completions.Complete(CompleteRequest(**fields), timeout=SECONDS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_that_of_the_tokens(name: str, seed: int, stubs: Stubs) -> None:
    """From nothing, as the library or the tokens' own spelling has it."""
    response = complete(stubs, model=name, max_tokens=40, seed=seed)
    assert len(response.token_ids) == 40
    # Bytes that are no character show as one U+FFFD, as Unicode advises, or one each.
    if name == "bytes" or "\ufffd" not in response.text:
        assert response.text == CASES[name].text(list(response.token_ids))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(7, 13), (1, 1, 18), (20,)])
def test_turns_together_are_one_turn(name: str, sizes: Sequence[int], stubs: Stubs) -> None:
    case = CASES[name]
    once = complete(stubs, session=stubs.create(name, 5), prompt=case.prompt, max_tokens=20)
    session, text = stubs.create(name, 5), ""
    ids: list[int] = []
    stubs.tell(session, case.prompt)
    for size in sizes:
        response = complete(stubs, session=session, max_tokens=size)
        text += response.text
        ids += response.token_ids
    assert (text, ids) == (once.text, list(once.token_ids))


@pytest.mark.parametrize("name", NAMES)
def test_turns_of_sessions_made_of_snapshots_are_one_turn(name: str, stubs: Stubs) -> None:
    """Also where the text of a turn ends within a character or a word."""
    case = CASES[name]
    once = complete(stubs, session=stubs.create(name, 5), prompt=case.prompt, max_tokens=30)
    session, text = stubs.create(name, 5), ""
    stubs.tell(session, case.prompt)
    for _ in range(30):
        text += complete(stubs, session=session, max_tokens=1).text
        export = stubs.sessions.ExportSession(ExportSessionRequest(name=session), timeout=SECONDS)
        restore = ImportSessionRequest(snapshot=export.snapshot)
        session = stubs.sessions.ImportSession(restore, timeout=SECONDS).session.name
    # What the last turn holds back is the next one's.
    assert text.rstrip("\ufffd") == once.text.rstrip("\ufffd")


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_completion_make_up_the_text(name: str, stubs: Stubs) -> None:
    case = CASES[name]
    session = stubs.create(name, 1)
    told = complete(stubs, session=session, prompt=case.prompt + case.rest, max_tokens=0)
    more = complete(stubs, session=session, max_tokens=20)
    score = ScoreRequest(model=name, text=case.prompt + case.rest, logprobs=0)
    tokens = stubs.completions.Score(score, timeout=SECONDS).tokens
    ids = [token.token_id for token in tokens]
    assert len(ids) == told.outcome.position
    whole = case.text([*ids, *more.token_ids])
    if name in ("bytes", "byte-level"):
        # A character that the last turn leaves unfinished is the next one's.
        whole = whole.rstrip("\ufffd")
        assert (case.text(ids) + more.text).rstrip("\ufffd") == whole
    else:
        assert case.text(ids) + more.text == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_told_in_parts_is_the_same_prompt(name: str, stubs: Stubs) -> None:
    case = CASES[name]
    once = complete(
        stubs, session=stubs.create(name, 3), prompt=case.prompt + case.rest, max_tokens=9
    )
    session = stubs.create(name, 3)
    stubs.tell(session, case.prompt)
    parts = complete(stubs, session=session, prompt=case.rest, max_tokens=9)
    assert parts.outcome.position == once.outcome.position
    assert (parts.text, parts.token_ids) == (once.text, once.token_ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_sum_of_its_tokens(name: str, stubs: Stubs) -> None:
    case = CASES[name]
    request = ScoreRequest(model=name, text=case.prompt + case.rest, logprobs=2)
    response = stubs.completions.Score(request, timeout=SECONDS)
    assert response.total_logprob == pytest.approx(sum(t.logprob for t in response.tokens))
    ids = [token.token_id for token in response.tokens]
    assert case.text(ids).split() == (case.prompt + case.rest).split()
    by_ids = ScoreRequest(model=name, logprobs=2)
    by_ids.tokens.ids.extend(ids)
    assert stubs.completions.Score(by_ids, timeout=SECONDS) == response


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bytes", "byte-level")])
def test_a_stop_string_over_several_tokens(name: str, stubs: Stubs) -> None:
    case = CASES[name]
    told: dict[str, Any] = {"prompt": case.prompt, "seed": 2, "model": name}
    free = complete(stubs, **told, max_tokens=30)
    stop = free.text[len(free.text) // 2 :][:6]
    stopped = complete(stubs, **told, max_tokens=30, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.outcome.matched_stop == stop
    count = len(stopped.token_ids)
    assert list(stopped.token_ids) == list(free.token_ids[:count])
    events = CompleteRequest(**told, max_tokens=30, stop=[stop])
    stream = stubs.completions.StreamComplete(events, timeout=SECONDS)
    assert "".join(event.delta.text for event in stream) == stopped.text


def test_unknown_words_and_bytes(stubs: Stubs) -> None:
    response = stubs.completions.Score(
        ScoreRequest(model="words", text="the dog", logprobs=0), timeout=SECONDS
    )
    assert [token.token.decode() for token in response.tokens] == ["the", "<unk>"]
    refusal = refused(stubs.completions.Complete, CompleteRequest(model="groups", prompt="[C]x"))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ["prompt"])
    assert refusal.metadata["offset"] == "3"


def with_kind(kind: model_pb2.Vocabulary.Kind) -> Callable[[model_pb2.Model], None]:
    def change(model: model_pb2.Model) -> None:
        model.vocabulary.kind = kind

    return change


def resized(model: model_pb2.Model) -> None:
    model.vocabulary.size += 1


def unlisted(name: str) -> Callable[[model_pb2.Model], None]:
    def change(model: model_pb2.Model) -> None:
        (file,) = [file for file in model.files if file.name == name]
        model.files.remove(file)

    return change


DAMAGES: dict[str, tuple[str, Callable[[model_pb2.Model], None]]] = {
    "no-joiner": ("words", lambda model: model.vocabulary.ClearField("joiner")),
    "no-tokens": ("bytes", lambda model: model.vocabulary.ClearField("tokens")),
    "bytes-as-characters": ("bytes", with_kind(model_pb2.Vocabulary.KIND_CHARACTER)),
    "other-size": ("metaspace", resized),
    "other-size-sp": ("sentencepiece", resized),
    "no-tokenizer": ("metaspace", unlisted("tokenizer.json")),
    "no-model": ("sentencepiece", unlisted("tokenizer.model")),
    "end-outside": ("metaspace", lambda model: model.vocabulary.end_tokens.append(9999)),
}


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("no-joiner", ("manifest.json", "vocabulary.joiner", "KIND_WORD")),
        ("no-tokens", ("manifest.json", "vocabulary.")),
        ("bytes-as-characters", ("manifest.json", "vocabulary.tokens", "not all characters")),
        (
            "other-size",
            (
                "tokenizer.json",
                f"vocabulary.size in manifest.json is {CASES['metaspace'].size + 1}",
            ),
        ),
        ("other-size-sp", ("tokenizer.model", f"is {CASES['sentencepiece'].size + 1}")),
        ("no-tokenizer", ("manifest.json", "tokenizer.json is not listed")),
        ("no-model", ("manifest.json", "tokenizer.model is not listed")),
        ("end-outside", ("manifest.json", "vocabulary.end_tokens")),
    ],
)
def test_what_cannot_be_served_says_why(name: str, reasons: Sequence[str], stubs: Stubs) -> None:
    model = stubs.models.GetModel(GetModelRequest(name=name), timeout=SECONDS).model
    assert model.status == model_pb2.Model.STATUS_FAILED
    assert "\n" not in model.status_detail
    for reason in reasons:
        assert reason in model.status_detail


BLOCKED = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tokenizers", "sentencepiece"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_without_the_libraries_only_their_models_fail(exported: Path, tmp_path: Path) -> None:
    names = ("words", "metaspace", "sentencepiece")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKED)
    with (
        running_server(exported, environment={"PYTHONPATH": str(site)}) as server,
        connected(server.address) as stubs,
    ):
        found = {
            name: stubs.models.GetModel(GetModelRequest(name=name), timeout=SECONDS).model
            for name in names
        }
    assert found["words"].status == model_pb2.Model.STATUS_READY
    for name, file, module in [
        ("metaspace", "tokenizer.json", "tokenizers"),
        ("sentencepiece", "tokenizer.model", "sentencepiece"),
    ]:
        detail = found[name].status_detail
        assert detail == f"{file}: needs {module}: pip install 'unrolled[tokenizers]'"
