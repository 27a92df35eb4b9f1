"""A client that is not ours, and knows the server by reflection alone: buf."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc.status_pb2 import Status
from support.calls import SECONDS, Refusal, Stubs, refusal_of_status
from support.server import RunningServer
from unrolled.v1.completion_pb2 import CompleteEvent, CompleteRequest, CompleteResponse
from unrolled.v1.model_pb2 import ListModelsRequest, ListModelsResponse

Json = dict[str, Any]


def buf_curl(server: RunningServer, method: str, *data: Json) -> subprocess.CompletedProcess[str]:
    """Call SERVICE/METHOD of the contract."""
    return subprocess.run(
        [
            Path(sys.executable).with_name("buf"),
            "curl",
            *("--protocol", "grpc", "--http2-prior-knowledge"),
            *("--data", "\n".join(map(json.dumps, data))),
            f"http://{server.address}/unrolled.v1.{method}",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def answers(server: RunningServer, method: str, *data: Json) -> list[Json]:
    """The messages that a call is answered with, which must not fail."""
    result = buf_curl(server, method, *data)
    assert (result.returncode, result.stderr) == (0, "")
    messages, decoder, rest = [], json.JSONDecoder(), result.stdout.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        messages.append(message)
        rest = rest[end:].lstrip()
    return messages


def refused(server: RunningServer, method: str, *data: Json) -> Refusal:
    """How a call that must fail did."""
    result = buf_curl(server, method, *data)
    assert result.stdout == ""
    error = json.loads(result.stderr)
    details = [
        any_pb2.Any(
            type_url=f"type.googleapis.com/{detail['type']}",
            value=base64.b64decode(detail["value"] + "=="),
        )
        for detail in error["details"]
    ]
    # buf exits with eight times the code.
    status = Status(code=result.returncode // 8, message=error["message"], details=details)
    refusal = refusal_of_status(status)
    assert error["code"] == refusal.code.lower()
    return refusal


def test_models_are_listed(server: RunningServer, stubs: Stubs) -> None:
    (answer,) = answers(server, "ModelService/ListModels", {})
    assert [model["name"] for model in answer["models"]] == ["gru", "lstm", "rnn"]
    listed = ParseDict(answer, ListModelsResponse())
    assert listed == stubs.models.ListModels(ListModelsRequest(), timeout=SECONDS)


def test_a_prompt_is_completed(server: RunningServer, stubs: Stubs) -> None:
    request = CompleteRequest(model="lstm", prompt="Hear me", max_tokens=30, seed=7, logprobs=2)
    (answer,) = answers(server, "CompletionService/Complete", MessageToDict(request))
    assert len(answer["text"]) == 30
    ours = stubs.completions.Complete(request, timeout=SECONDS)
    assert ParseDict(answer, CompleteResponse()) == ours


def test_a_completion_is_streamed(server: RunningServer, stubs: Stubs) -> None:
    request = CompleteRequest(model="gru", prompt="Hear me", max_tokens=100, seed=2**64 - 1)
    messages = answers(server, "CompletionService/StreamComplete", MessageToDict(request))
    events = [ParseDict(message, CompleteEvent()) for message in messages]
    whole = stubs.completions.Complete(request, timeout=SECONDS)
    assert len(events) > 2
    assert "".join(event.delta.text for event in events) == whole.text
    assert [token for event in events for token in event.delta.token_ids] == whole.token_ids
    assert [event.outcome for event in events if event.HasField("outcome")] == [whole.outcome]
    assert events[-1].HasField("outcome")


def test_a_conversation_is_held(server: RunningServer) -> None:
    commands: list[Json] = [
        {"commandId": "1", "open": {"model": "lstm", "seed": "3"}},
        {"commandId": "2", "feed": {"text": "Hear"}},
        {"commandId": "3", "complete": {"prompt": " me", "maxTokens": 5}},
        {"commandId": "4", "complete": {"prompt": "\u00e9"}},
        {"commandId": "5", "score": {"text": "speak"}},
    ]
    opened, *events = answers(server, "CompletionService/Converse", *commands)
    assert opened["opened"]["model"] == "lstm/1"
    ends = [event for event in events if "outcome" in event or "error" in event]
    assert [end["commandId"] for end in ends] == ["2", "3", "4", "5"]
    assert [end["outcome"]["position"] for end in ends if "outcome" in end] == ["4", "12", "17"]
    (reason,) = [end["error"]["details"][0]["reason"] for end in ends if "error" in end]
    assert reason == "ERROR_REASON_UNKNOWN_TEXT"


@pytest.mark.parametrize("method", ["Complete", "StreamComplete", "Score"])
def test_an_unknown_model_is_named(server: RunningServer, method: str) -> None:
    text = "text" if method == "Score" else "prompt"
    refusal = refused(server, f"CompletionService/{method}", {"model": "nobody", text: "a"})
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert refusal.metadata == {"model": "nobody"}
    assert refusal.message == "model 'nobody' is not served"


def test_a_field_out_of_range_is_named(server: RunningServer) -> None:
    request = {"model": "lstm", "prompt": "a", "maxTokens": -1}
    refusal = refused(server, "CompletionService/Complete", request)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refusal.fields == ["max_tokens"]
    assert refusal.message == "max_tokens: -1 is less than 0"
