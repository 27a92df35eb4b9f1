"""What a gRPC client gets that knows the server by reflection alone: buf."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.calls import SECONDS, Stubs
from support.models import RECIPES
from support.server import RunningServer
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse

Message = dict[str, Any]


def buf_curl(
    server: RunningServer, method: str, *messages: Message
) -> subprocess.CompletedProcess[str]:
    """Call SERVICE/RPC of the contract with messages in their JSON form."""
    return subprocess.run(
        [
            Path(sys.executable).with_name("buf"),
            "curl",
            "--protocol=grpc",
            "--http2-prior-knowledge",
            f"--data={' '.join(map(json.dumps, messages))}",
            f"http://{server.address}/unrolled.v1.{method}",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def answers(server: RunningServer, method: str, *messages: Message) -> list[Message]:
    """The messages that a call brings, which must not fail."""
    result = buf_curl(server, method, *messages)
    assert (result.returncode, result.stderr) == (0, "")
    return decoded(result.stdout)


def decoded(text: str) -> list[Message]:
    """JSON values, one after the other."""
    values, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def asked(**fields: str | int) -> tuple[Message, CompleteResponse]:
    """A request in JSON, and what must come of it."""
    raise NotImplementedError
