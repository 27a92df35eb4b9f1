"""How a channel is secured: TLS, and what is shown to the server."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

_KEY = re.compile(r"[!-~]+")
_SCHEME = re.compile(r"(dns|ipv4|ipv6):(///?)?")
_LOCAL = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE | re.ASCII)

File = str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """How a server is reached by TLS. All files are PEM, and read when a client is made.

    ca: the authorities that the server's certificate must come from; None is gRPC's own list of
        public ones, or the file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
    cert, key: what this client shows to a server that asks for a certificate, and its key.
    server_name: the name that the certificate must have, where it is not the target's.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key of a client go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises OSError for a file that cannot be read, ValueError for a bad one."""
        authorities = None if self.ca is None else _authorities(self.ca)
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(authorities)
        chain, key = Path(self.cert).read_bytes(), Path(self.key).read_bytes()
        _check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(authorities, key, chain)


@dataclass(frozen=True)
class Security:
    """What a channel is made with."""

    credentials: grpc.ChannelCredentials | None = None
    """None: plain text."""
    options: Sequence[tuple[str, str | int]] = ()
    metadata: Sequence[tuple[str, str]] = ()
    """Goes with every call."""


def security(
    target: str,
    tls: Tls | bool,
    credentials: grpc.ChannelCredentials | None,
    api_key: str | None,
    api_key_over_plaintext: bool,
) -> Security:
    """What the arguments of a client mean. Raises OSError, ValueError."""
    channel = _channel(tls, credentials)
    if api_key is None:
        return channel
    if not _KEY.fullmatch(api_key):
        raise ValueError("an API key is printable ASCII without spaces")
    if channel.credentials is None and not (api_key_over_plaintext or is_local(target)):
        raise ValueError(f"{target} would get the API key in plain text: it needs TLS")
    return replace(channel, metadata=(("authorization", f"Bearer {api_key}"),))


def is_local(target: str) -> bool:
    """Whether a gRPC name is of this machine, by the looks of it."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return _LOCAL.fullmatch(_SCHEME.sub("", target)) is not None


def _channel(tls: Tls | bool, credentials: grpc.ChannelCredentials | None) -> Security:
    if not tls:
        return Security(credentials)
    if credentials is not None:
        raise ValueError("either tls or credentials")
    chosen = Tls() if tls is True else tls
    name = chosen.server_name
    options = () if name is None else (("grpc.ssl_target_name_override", name),)
    return Security(chosen.credentials(), options)


def _authorities(file: File) -> bytes:
    content = Path(file).read_bytes()
    try:
        # gRPC would take anything and only fail to connect.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode())
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{os.fspath(file)}: is not one or more certificates in PEM") from None
    return content


def _check_pair(cert: File, key: File) -> None:
    names = f"{os.fspath(cert)} and {os.fspath(key)}"
    try:
        # A password is given so that none is asked for.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=lambda: b"-")
    except ssl.SSLError:
        raise ValueError(
            f"{names}: are not a certificate and its key, in PEM and without a passphrase"
        ) from None
