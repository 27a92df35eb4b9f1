"""onnxruntime tells its maker nothing, unless somebody wants it to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

VARIABLE = "ORT_DISABLE_TELEMETRY"
# Prints the variable at the moment at which onnxruntime is loaded.
WATCH = """
import os, sys
told = []
def hook(event, arguments):
    if event == "import" and arguments[0] == "onnxruntime" and not told:
        told.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(hook)
try:
    from {package}.__main__ import main
    main({arguments})
finally:
    print(*told)
"""


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("unrolled_server", ["--models", "/no/such/folder"]),
        ("unrolled_export", ["convert", "/no/such/file", "--output", "/no/such/folder"]),
    ],
)
@pytest.mark.parametrize(("given", "seen"), [(None, "1"), ("0", "0")])
def test_it_is_off_before_onnxruntime_is_loaded(
    package: str, arguments: list[str], given: str | None, seen: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if given is not None:
        environment[VARIABLE] = given
    code = WATCH.format(package=package, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout == f"{seen}\n"
