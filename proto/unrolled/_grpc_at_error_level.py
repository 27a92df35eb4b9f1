"""Imports gRPC, before anything else here does, at the verbosity that it documents as its default.

Its core forgets that default where a TLS handshake fails, and writes to standard error what is
raised anyway. It reads the variable once; no child of this process is to inherit it.
"""

from __future__ import annotations

import importlib
import os

VARIABLE = "GRPC_VERBOSITY"

if VARIABLE in os.environ:
    importlib.import_module("grpc")
else:
    os.environ[VARIABLE] = "ERROR"
    importlib.import_module("grpc")
    del os.environ[VARIABLE]
