"""What --store may say of a Redis server: a URL."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

SCHEMES = ("redis", "rediss", "unix")
OPTIONS = frozenset(
    {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)
"""What may follow its question mark."""


def is_redis(store: str) -> bool:
    """Whether a setting of --store is meant to be such a URL."""
    return store.partition(":")[0] in SCHEMES


def check(url: str) -> None:
    """Raises ValueError where it is none."""
    parts = urlsplit(url)
    if not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise ValueError("redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss:// or unix:///SOCKET")
    _ = parts.port  # which raises where it is no port
    path = parts.path.removeprefix("/")
    if parts.scheme != "unix" and path and not path.isdecimal():
        raise ValueError(f"the database {path} is not a number")
    query = parse_qs(parts.query, keep_blank_values=True)
    if unknown := query.keys() - OPTIONS:
        raise ValueError(f"unknown option {min(unknown)}; there are {', '.join(sorted(OPTIONS))}")
    if not query.get("db", ["0"])[0].isdecimal():
        raise ValueError(f"the database {query['db'][0]} is not a number")


def without_password(text: str) -> str:
    """The text, as it may be logged."""
    return re.sub(r":[^:/@]*@", ":***@", text)
