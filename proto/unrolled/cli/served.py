"""Which model to use when the user named none."""

from __future__ import annotations

from unrolled import Client, Model
from unrolled.cli.problems import Problem


def only_model(client: Client) -> str:
    """The name of the one model that is ready. Raises Problem unless there is exactly one."""
    ready = sorted({m.name for m in client.models() if m.status == Model.STATUS_READY})
    if not ready:
        raise Problem("no model is ready: `unrolled models` says why", 1)
    if len(ready) > 1:
        raise Problem(f"choose a model with --model: {', '.join(ready)}", 2)
    return ready[0]
