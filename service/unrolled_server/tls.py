"""The server's end of TLS: certificate, key, and the authorities that clients are known by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from unrolled_server.files import NamedFile, Recipe

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the parser raises, some of it only when a part is looked at."""

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
        certificate = _certificates(files[0], contents[0])[0]
        expires = _check_time(files[0], certificate, clock())
        _check_key(files[1], contents[1], certificate)
        authorities = contents[2] if client_ca is not None else None
        if authorities is not None:
            _certificates(files[2], authorities)
        return Identity(contents[0], contents[1], authorities, expires)

    return Recipe("tls", files, make)


def _certificates(file: NamedFile, content: bytes) -> list[x509.Certificate]:
    """At least one. Raises FileError."""
    try:
        return x509.load_pem_x509_certificates(content)
    except _UNREADABLE:
        raise file.error("is not one or more certificates in PEM") from None


def _check_time(file: NamedFile, certificate: x509.Certificate, now: datetime) -> datetime:
    """Returns when the certificate expires. Raises FileError unless it is valid now.

    Others than the server's own may be out of date: clients find their way around them.
    """
    try:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _UNREADABLE:
        raise file.error("is not a certificate that can be read") from None
    if now < begin:
        raise file.error(f"the certificate is not valid before {begin.isoformat()}")
    if now > end:
        raise file.error(f"the certificate has expired on {end.isoformat()}")
    return end


def _check_key(file: NamedFile, content: bytes, certificate: x509.Certificate) -> None:
    """Raises FileError unless it is the certificate's key, ready to be used."""
    try:
        key = load_pem_private_key(content, None)
        belongs = key.public_key() == certificate.public_key()
    except TypeError:
        raise file.error("the key is encrypted: it has to be there without a passphrase") from None
    except _UNREADABLE:
        raise file.error("is not a private key in PEM") from None
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise file.error("the key is neither an RSA nor an elliptic-curve one")
    if not belongs:
        raise file.error("is not the key of the first certificate in the file of --tls-cert")
