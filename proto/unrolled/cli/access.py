"""The arguments that say how the server is reached: where it is, TLS, the API key."""

from __future__ import annotations

import argparse
import os
from typing import Any

from unrolled.cli.problems import Problem
from unrolled.client import DEFAULT_TARGET, Client
from unrolled.security import Tls

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")

_TEXTS = (
    (
        "--server",
        "HOST:PORT",
        "UNROLLED_SERVER",
        f"the server (default: UNROLLED_SERVER, else {DEFAULT_TARGET})",
    ),
    (
        "--tls-ca",
        "FILE",
        "UNROLLED_TLS_CA",
        "TLS, with a server whose certificate comes from these authorities, PEM (UNROLLED_TLS_CA)",
    ),
    (
        "--tls-cert",
        "FILE",
        "UNROLLED_TLS_CLIENT_CERT",
        "certificate to show to the server, PEM (UNROLLED_TLS_CLIENT_CERT)",
    ),
    (
        "--tls-key",
        "FILE",
        "UNROLLED_TLS_CLIENT_KEY",
        "its private key, PEM (UNROLLED_TLS_CLIENT_KEY)",
    ),
    (
        "--tls-server-name",
        "NAME",
        "UNROLLED_TLS_SERVER_NAME",
        "name in the server's certificate, if not that of --server (UNROLLED_TLS_SERVER_NAME)",
    ),
    (
        "--api-key",
        "KEY",
        "UNROLLED_API_KEY",
        "what the server knows you by; others may read command lines, so better UNROLLED_API_KEY",
    ),
)

_SWITCHES = (
    (
        "--tls",
        "TLS, with a server whose certificate comes from a public authority (UNROLLED_TLS=1)",
    ),
    (
        "--api-key-over-plaintext",
        "send the key without TLS, to another machine too (UNROLLED_API_KEY_OVER_PLAINTEXT=1)",
    ),
)


def add_access(parser: argparse.ArgumentParser, *, has_defaults: bool) -> None:
    """With `has_defaults`, what is not given comes from the environment; else it is left unset."""
    for flag, metavar, variable, text in _TEXTS:
        default = os.environ.get(variable) or (DEFAULT_TARGET if flag == "--server" else None)
        parser.add_argument(
            flag,
            metavar=metavar,
            default=default if has_defaults else argparse.SUPPRESS,
            help=text,
        )
    off = False if has_defaults else argparse.SUPPRESS
    for flag, text in _SWITCHES:
        parser.add_argument(flag, action="store_true", default=off, help=text)


def connected(arguments: argparse.Namespace) -> Client:
    """A client as the arguments say. Raises Problem where they do not fit together."""
    try:
        return Client(
            arguments.server,
            tls=_tls(arguments),
            api_key=arguments.api_key,
            api_key_over_plaintext=arguments.api_key_over_plaintext
            or _switch("UNROLLED_API_KEY_OVER_PLAINTEXT"),
        )
    except ValueError as error:
        raise Problem(str(error), 2) from None
    except OSError as error:
        raise Problem(f"{error.filename}: {error.strerror}", 2) from None


def _tls(arguments: argparse.Namespace) -> Tls | bool:
    files: dict[str, Any] = {
        "ca": arguments.tls_ca,
        "cert": arguments.tls_cert,
        "key": arguments.tls_key,
        "server_name": arguments.tls_server_name,
    }
    if (files["cert"] is None) != (files["key"] is None):
        raise Problem("--tls-cert and --tls-key go together", 2)
    if any(value is not None for value in files.values()):
        return Tls(**files)
    return arguments.tls or _switch("UNROLLED_TLS")


def _switch(variable: str) -> bool:
    """Whether a variable of the environment is on. Raises Problem for what is neither."""
    text = os.environ.get(variable, "")
    if text.lower() not in (*_TRUE, *_FALSE):
        raise Problem(f"{variable}={text} is neither 1 nor 0", 2)
    return text.lower() in _TRUE
