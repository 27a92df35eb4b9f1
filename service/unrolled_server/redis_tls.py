"""TLS on the way to Redis: whom the server trusts there, and what it shows."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from unrolled_server.certificates import certificates, check_time, key_of
from unrolled_server.files import NamedFile, Recipe
from unrolled_server.redis_url import CA, CERT, KEY, TlsOptions


def context_recipe(options: TlsOptions) -> Recipe[ssl.SSLContext]:
    """How the context of connections is made of the files that the URL of --store names.

    There may be none. The authorities in a file stand in place of the system's.
    """
    files = {name: NamedFile(f"--store {name}", path) for name, path in options.files.items()}

    def make(contents: Sequence[bytes]) -> ssl.SSLContext:
        read = dict(zip(files, contents, strict=True))
        context = ssl.create_default_context(
            cadata=_authorities(files[CA], read[CA]) if CA in files else None
        )
        if not options.verifies or not options.checks_host:
            context.check_hostname = False
        if not options.verifies:
            context.verify_mode = ssl.CERT_NONE
        if CERT in files:
            _show(context, files, read)
        return context

    return Recipe("store_tls", list(files.values()), make)


def _authorities(file: NamedFile, content: bytes) -> bytes:
    """As an SSLContext takes them: in DER, since PEM might have comments that are not ASCII.

    Raises FileError.
    """
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates(file, content))


def _show(
    context: ssl.SSLContext, files: Mapping[str, NamedFile], read: Mapping[str, bytes]
) -> None:
    """Let the context show a certificate. Raises FileError."""
    certificate = certificates(files[CERT], read[CERT])[0]
    check_time(files[CERT], certificate, datetime.now(UTC))
    key_of(certificate, files[CERT], files[KEY], read[KEY])
    try:
        # With a passphrase at hand, be it a wrong one, OpenSSL does not ask the terminal for it.
        context.load_cert_chain(files[CERT].path, files[KEY].path, password="")
    except (OSError, ValueError) as error:
        raise files[CERT].error(f"cannot be used: {error}") from None
