"""Certificates and keys in PEM, from files that flags name: checked before they are used."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from unrolled_server.files import NamedFile

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the parser raises, some of it only when a part is looked at."""


def certificates(file: NamedFile, content: bytes) -> list[x509.Certificate]:
    """At least one. Raises FileError."""
    try:
        return x509.load_pem_x509_certificates(content)
    except _UNREADABLE:
        raise file.error("is not one or more certificates in PEM") from None


def check_time(file: NamedFile, certificate: x509.Certificate, now: datetime) -> datetime:
    """Returns when the certificate expires. Raises FileError unless it is valid now."""
    try:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _UNREADABLE:
        raise file.error("is not a certificate that can be read") from None
    if now < begin:
        raise file.error(f"the certificate is not valid before {begin.isoformat()}")
    if now > end:
        raise file.error(f"the certificate has expired on {end.isoformat()}")
    return end


def key_of(
    certificate: x509.Certificate, source: NamedFile, file: NamedFile, content: bytes
) -> PrivateKeyTypes:
    """The key in `file`, ready to be used. Raises FileError unless it is the certificate's.

    `source` is where the certificate comes from.
    """
    try:
        key = load_pem_private_key(content, None)
        belongs = key.public_key() == certificate.public_key()
    except TypeError:
        raise file.error("the key is encrypted: it has to be there without a passphrase") from None
    except _UNREADABLE:
        raise file.error("is not a private key in PEM") from None
    if not belongs:
        raise file.error(f"is not the key of the first certificate in the file of {source.flag}")
    return key
