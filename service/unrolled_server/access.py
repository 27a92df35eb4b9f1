"""Who may call: TLS and API keys as configured, from files that are read again when they change."""

from __future__ import annotations

from ipaddress import ip_address

import grpc.aio

from unrolled_server.api_keys import ApiKeys, keys_recipe
from unrolled_server.config import Config
from unrolled_server.files import Made, Recipe
from unrolled_server.metrics import ReloadMetrics
from unrolled_server.reloading import Reloader
from unrolled_server.tls import Credentials, Identity, identity_recipe


class Tls:
    """The server's end of TLS and the files that it comes from."""

    def __init__(self, recipe: Recipe[Identity]) -> None:
        """Read the files. Raises FileError."""
        self._recipe = recipe
        self._first: Made[Identity] = recipe.read()
        self.credentials = Credentials(self._first.value)

    def reloader(self, metrics: ReloadMetrics) -> Reloader[Identity]:
        """What keeps the credentials as the files are."""

        def note_expiry(identity: Identity) -> None:
            metrics.certificate_expiry.set(identity.expires.timestamp())

        def use(identity: Identity) -> None:
            self.credentials.replace(identity)
            note_expiry(identity)

        note_expiry(self._first.value)
        return Reloader(self._recipe, self._first, use, metrics)


class KeyFile:
    """The API keys that are good, and the file that they come from."""

    def __init__(self, recipe: Recipe[ApiKeys]) -> None:
        """Read the file. Raises FileError."""
        self._recipe = recipe
        self._first: Made[ApiKeys] = recipe.read()
        self.keys = self._first.value

    def reloader(self, metrics: ReloadMetrics) -> Reloader[ApiKeys]:
        """What keeps the keys as the file is."""

        def use(keys: ApiKeys) -> None:
            self.keys = keys

        return Reloader(self._recipe, self._first, use, metrics)


class Access:
    """What the server shows its callers, and asks of them."""

    def __init__(self, config: Config) -> None:
        """Read all files. Raises FileError."""
        self._tls: Tls | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            recipe = identity_recipe(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._tls = Tls(recipe)
        self._is_reachable = not _is_loopback(config.host)
        path = config.api_key_file
        self._key_file = None if path is None else KeyFile(keys_recipe(path))

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    def keys(self) -> ApiKeys | None:
        """The API keys that are good now; None where none is asked for."""
        return None if self._key_file is None else self._key_file.keys

    @property
    def exposes_keys(self) -> bool:
        """Whether keys may come over a network in plain text."""
        return self._key_file is not None and self._tls is None and self._is_reachable

    def open_port(self, server: grpc.aio.Server, address: str) -> int:
        """Let the server listen; returns the port. Raises RuntimeError."""
        if self._tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._tls.credentials.for_grpc())

    def reloaders(self, metrics: ReloadMetrics) -> list[Reloader[Identity] | Reloader[ApiKeys]]:
        """What keeps all this as the files are, each to be followed."""
        sources = (self._tls, self._key_file)
        return [source.reloader(metrics) for source in sources if source is not None]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
