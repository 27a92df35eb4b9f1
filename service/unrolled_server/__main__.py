"""The command `unrolled-server`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from unrolled_server.config import ConfigError, parse_config
from unrolled_server.failpoints import FailpointSyntaxError
from unrolled_server.logs import set_up_logs

# onnxruntime reports its use to its maker unless told not to before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    from unrolled_server.files import FileError
    from unrolled_server.running import DeviceError
    from unrolled_server.server import BindError, TracingError, serve
    from unrolled_server.store import StoreOpenError
except ModuleNotFoundError as error:
    # The client alone is installed; its environment has this command all the same.
    sys.exit(f"unrolled-server: {error.name} is missing: pip install '.[server]'")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status."""
    try:
        config = parse_config(argv)
    except ConfigError as error:
        print(f"unrolled-server: {error}", file=sys.stderr)
        return 2
    set_up_logs(config.log_level, config.log_format)
    try:
        asyncio.run(serve(config))
    except (
        BindError,
        DeviceError,
        FailpointSyntaxError,
        FileError,
        StoreOpenError,
        TracingError,
    ) as error:
        print(f"unrolled-server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
