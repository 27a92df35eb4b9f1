"""Which calls gRPC repeats by itself, as a service configuration.

UNAVAILABLE says that nobody answered, that the connection broke, or that the server is ending, and
CANCELLED, where a server says it, that the call met its very end (the words are gRPC's): nobody
knows whether the call was carried out. So only those are repeated that change nothing, or that the
server carries out once: reads; turns without a session; turns with a `request_id`. A stream is
repeated only while nothing of it has come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unrolled.v1.completion_pb2 import CompleteRequest

ChannelOptions = Sequence[tuple[str, str | int]]

_READS = {
    "unrolled.v1.ModelService": ("ListModels", "GetModel"),
    "unrolled.v1.SessionService": ("GetSession", "ListSessions", "ExportSession"),
    "unrolled.v1.CompletionService": ("Score",),
}
_TURNS = {"unrolled.v1.CompletionService": ("Complete", "StreamComplete")}
_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}
"""After 500 failures, less a tenth of the successes, nothing is repeated: it would only add to the
load. Not before: of several servers behind a proxy, one that dies fails all its calls at once."""


def may_be_repeated(request: CompleteRequest) -> bool:
    """Whether a turn does no harm if it is asked for again."""
    return not request.session or bool(request.request_id)


def reads_repeated() -> ChannelOptions:
    """Options of a channel that repeats reads."""
    return _options(_READS)


def turns_repeated() -> ChannelOptions:
    """Options of a channel that repeats turns, and so is for those alone that may be."""
    return _options(_TURNS)


def _options(methods: Mapping[str, tuple[str, ...]]) -> ChannelOptions:
    names = [
        {"service": service, "method": method}
        for service, of_service in methods.items()
        for method in of_service
    ]
    config: dict[str, Any] = {
        "methodConfig": [{"name": names, "retryPolicy": _POLICY}],
        "retryThrottling": _THROTTLING,
    }
    return (("grpc.service_config", json.dumps(config)),)
