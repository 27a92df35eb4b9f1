"""What --store may say of a Redis server: a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

SCHEMES = ("redis", "rediss", "unix")
CA, CERT, KEY = "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"
VERIFY, CHECK_HOST = "ssl_cert_reqs", "ssl_check_hostname"
FILES = (CA, CERT, KEY)
SWITCHES = {VERIFY: {"required": True, "none": False}, CHECK_HOST: {"true": True, "false": False}}
TLS_OPTIONS = frozenset({*FILES, *SWITCHES})
OPTIONS = TLS_OPTIONS | {"db"}
"""What may follow its question mark, as in redis-py's own URLs."""
FORM = (
    "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss:// or unix:///SOCKET; a port is 0 to 65535,"
    " and in user, password and files % / ? # @ [ ] & are written %25 %2F %3F %23 %40 %5B %5D %26"
)


@dataclass(frozen=True)
class TlsOptions:
    """How TLS is spoken with a Redis server."""

    files: Mapping[str, Path]
    """By their options, as in FILES: whom to trust, else whom the system trusts; what to show."""
    verifies: bool = True
    """Whether its certificate has to be from one of these."""
    checks_host: bool = True
    """Whether that has to be for the host in the URL."""

    @property
    def unverified(self) -> str:
        """What is taken on trust, in words; empty where nothing is."""
        if not self.verifies:
            return "certificate"
        return "" if self.checks_host else "host name"


def is_redis(store: str) -> bool:
    """Whether a setting of --store is meant to be such a URL."""
    return store.partition(":")[0] in SCHEMES


def check(url: str) -> None:
    """Raises ValueError where it is none, in words that quote nothing of a password."""
    parts = _parts(url)
    path = parts.path.removeprefix("/")
    if parts.scheme != "unix" and path and not path.isdecimal():
        raise ValueError(f"the database {path} is not a number")
    options = _options(parts)
    if unknown := options.keys() - OPTIONS:
        raise ValueError(f"unknown option {min(unknown)}; there are {', '.join(sorted(OPTIONS))}")
    if not options.get("db", "0").isdecimal():
        raise ValueError(f"the database {options['db']} is not a number")
    if parts.scheme == "rediss":
        _tls(options)
    elif stray := options.keys() & TLS_OPTIONS:
        raise ValueError(f"{min(stray)} is for rediss://: {parts.scheme}:// is without TLS")


def tls_options(store: str) -> TlsOptions | None:
    """How TLS is spoken where `store` is a URL of rediss://; None where it is not.

    Raises ValueError.
    """
    if store.partition(":")[0] != "rediss":
        return None
    return _tls(_options(_parts(store)))


def without_password(text: str) -> str:
    """The text, as it may be logged: before an @, at most a scheme and a user are left of it."""
    return re.sub(r"^([^:@]*:/*)([^:@]*:)?.*@", r"\1\2***@", text, flags=re.DOTALL)


def _parts(url: str) -> SplitResult:
    """Raises ValueError."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises where it is no port
    except ValueError:
        # Its words quote what is in the place of a host or a port: part of a password, it may be.
        raise ValueError(FORM) from None
    place = parts.path if parts.scheme == "unix" else parts.hostname
    # An @ behind the place: what comes before it belongs to a password.
    if not place or "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(FORM)
    return parts


def _options(parts: SplitResult) -> dict[str, str]:
    query = parse_qs(parts.query, keep_blank_values=True)
    return {name: values[0] for name, values in query.items()}


def _tls(options: Mapping[str, str]) -> TlsOptions:
    """Raises ValueError where options say nothing, or lack another, or contradict each other."""
    switches = {name: _switch(name, options[name]) for name in SWITCHES if name in options}
    for name, needed in ((CERT, KEY), (KEY, CERT)):
        if name in options and needed not in options:
            raise ValueError(f"{name} needs {needed} beside it")
    verifies = switches.get(VERIFY, True)
    if not verifies and CA in options:
        raise ValueError(f"{VERIFY}=none trusts anybody, {CA} or not: leave one of them out")
    files = {name: Path(options[name]) for name in FILES if name in options}
    return TlsOptions(files, verifies, switches.get(CHECK_HOST, True))


def _switch(name: str, text: str) -> bool:
    """Raises ValueError."""
    choices = SWITCHES[name]
    if text.lower() not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}")
    return choices[text.lower()]
