"""Certificates for tests, made on the spot, and the files that they lie in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import trustme

LONG_AGO = datetime.now(UTC) - timedelta(days=30)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """A certificate and its key, as files."""

    cert: Path
    key: Path

    def write(self, issued: trustme.LeafCert) -> None:
        """Replace both, each at once."""
        _replace(self.cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        _replace(self.key, issued.private_key_pem.bytes())

    def flags(self) -> tuple[str, ...]:
        """Of server and command line."""
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))


def written(folder: Path, name: str, issued: trustme.LeafCert) -> Files:
    """Files named after `name`."""
    files = Files(folder / f"{name}.pem", folder / f"{name}.key")
    files.write(issued)
    return files


def local(ca: trustme.CA) -> trustme.LeafCert:
    """A certificate for a server on this machine."""
    return ca.issue_cert("127.0.0.1", "localhost")


def expired(ca: trustme.CA) -> trustme.LeafCert:
    """The same, of no use since yesterday."""
    return ca.issue_cert("127.0.0.1", not_before=LONG_AGO, not_after=YESTERDAY)


def trusting(ca: trustme.CA, shown: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    """A client that trusts `ca`, and shows a certificate."""
    if shown is None:
        return grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    chain = b"".join(blob.bytes() for blob in shown.cert_chain_pems)
    key = shown.private_key_pem.bytes()
    return grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)


def _replace(path: Path, content: bytes) -> None:
    """As a deployment does it: nobody sees half of a file."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)
