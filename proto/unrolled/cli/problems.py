"""What the user is told when something goes wrong: one line, with the reason and what to do."""

from __future__ import annotations

import grpc

from unrolled.errors import UnrolledError

_REMEDIES = {
    "UNKNOWN_TEXT": "leave that part out, or choose a model whose vocabulary has it",
    "MODEL_NOT_FOUND": "`unrolled models` lists what is served",
    "SESSION_NOT_FOUND": "`unrolled sessions` lists those alive, `unrolled chat` starts a new one",
    "SESSION_BUSY": "try again when that turn has ended, or fork the session",
    "NOTHING_TO_CONTINUE": "give a prompt",
    "TOO_MANY_SESSIONS": "`unrolled sessions delete` makes room",
    "OVERLOADED": "try again",
    "DRAINING": "try again",
    "UNAUTHENTICATED": "--api-key or UNROLLED_API_KEY",
    "SNAPSHOTS_DISABLED": "its --seal-key-file names the keys",
}


class Problem(Exception):
    """Something the command line itself cannot go on with; `status` is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def explain(error: UnrolledError, server: str) -> str:
    """One line: what the server said, the reason's name, the remedy and when to try again."""
    said = " ".join(error.message.split()) or error.code.name
    reason = error.reason or error.code.name
    line = f"{said} ({reason})"
    remedy = _remedy(error, server)
    if remedy:
        line += f": {remedy}"
    if error.retry_after:
        line += f", in {error.retry_after:g} s"
    return line


def _remedy(error: UnrolledError, server: str) -> str:
    if error.reason is not None:
        return _REMEDIES.get(error.reason, "")
    if error.code is grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in error.message:
        return "--tls-ca names the authorities that a certificate may come from"
    if error.code is grpc.StatusCode.UNAVAILABLE and "Socket closed" in error.message:
        return f"{server} wants TLS (--tls, --tls-ca), a certificate (--tls-cert), or is restarting"
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"is a server running at {server}? --server or UNROLLED_SERVER names another"
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return f"what answers at {server} is not an unrolled server, or is an older one"
    return ""
