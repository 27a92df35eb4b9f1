"""The server's end of TLS: certificate, key, and the authorities that clients are known by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from unrolled_server.certificates import certificates, check_time, key_of
from unrolled_server.files import NamedFile, Recipe

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Identity:
    """What the server proves who it is with, checked, as PEM."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    """Who signs the certificates that clients must show; None: they need none."""
    expires: datetime
    """When the server's own certificate does."""

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """For gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


class Credentials:
    """An identity that may be replaced: connections made from then on get the new one.

    Connections that stand keep what they were made with. Whether clients need a certificate
    is settled by the first identity.
    """

    def __init__(self, identity: Identity) -> None:
        self._first = identity
        # gRPC asks in threads of its own, before every handshake.
        self._news: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)

    def replace(self, identity: Identity) -> None:
        """Use this identity from the next connection on."""
        self._news.append(identity.configuration())

    def for_grpc(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._first.configuration(),
            self._newer,  # type: ignore[arg-type]  # None means unchanged; the stubs lack it
            require_client_authentication=self._first.client_ca is not None,
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._news.pop()
        except IndexError:
            return None


def identity_recipe(
    cert: Path, key: Path, client_ca: Path | None, clock: Clock = lambda: datetime.now(UTC)
) -> Recipe[Identity]:
    """How an Identity is made of the files of --tls-cert, --tls-key and --tls-client-ca."""
    files = [NamedFile("--tls-cert", cert), NamedFile("--tls-key", key)]
    if client_ca is not None:
        files.append(NamedFile("--tls-client-ca", client_ca))

    def make(contents: Sequence[bytes]) -> Identity:
        # Others than the server's own may be out of date: clients find their way around them.
        certificate = certificates(files[0], contents[0])[0]
        expires = check_time(files[0], certificate, clock())
        _check_kind(files[1], key_of(certificate, files[0], files[1], contents[1]))
        authorities = contents[2] if client_ca is not None else None
        if authorities is not None:
            certificates(files[2], authorities)
        return Identity(contents[0], contents[1], authorities, expires)

    return Recipe("tls", files, make)


def _check_kind(file: NamedFile, key: PrivateKeyTypes) -> None:
    """Raises FileError where gRPC cannot use the key."""
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise file.error("the key is neither an RSA nor an elliptic-curve one")
