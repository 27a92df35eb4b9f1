"""The secrets of the server, from files that it reads again when they change.

TLS, API keys, the keys that seal snapshots, and TLS on the way to its store.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from ssl import SSLContext

import grpc.aio

from unrolled_server.api_keys import ApiKeys, keys_recipe
from unrolled_server.config import Config
from unrolled_server.files import Made, Recipe
from unrolled_server.metrics import ReloadMetrics
from unrolled_server.redis_tls import context_recipe
from unrolled_server.redis_url import tls_options
from unrolled_server.reloading import Followed, Reloader
from unrolled_server.sealing import Sealer, sealer_recipe
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
            metrics.use_until(identity.expires.timestamp())

        def use(identity: Identity) -> None:
            self.credentials.replace(identity)
            note_expiry(identity)

        note_expiry(self._first.value)
        return Reloader(self._recipe, self._first, use, metrics)


class Access:
    """What the server shows its callers, asks of them, and seals their snapshots with.

    And, where its store is at rediss://, whom it trusts there.
    """

    def __init__(self, config: Config) -> None:
        """Read all files. Raises FileError."""
        self._tls: Tls | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            recipe = identity_recipe(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._tls = Tls(recipe)
        self._is_reachable = not _is_loopback(config.host)
        path = config.api_key_file
        self._api_keys = None if path is None else Followed(keys_recipe(path))
        path = config.seal_key_file
        self._sealer = None if path is None else Followed(sealer_recipe(path))
        options = tls_options(config.store)
        self._store_tls = None if options is None else Followed(context_recipe(options))

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    def keys(self) -> ApiKeys | None:
        """The API keys that are good now; None where none is asked for."""
        return None if self._api_keys is None else self._api_keys.value

    def sealer(self) -> Sealer | None:
        """What seals snapshots now; None where there are none."""
        return None if self._sealer is None else self._sealer.value

    @property
    def store_tls(self) -> Callable[[], SSLContext] | None:
        """What connections to the store are made with from now on; None where it has no TLS."""
        followed = self._store_tls
        return None if followed is None else lambda: followed.value

    @property
    def exposes_keys(self) -> bool:
        """Whether keys may come over a network in plain text."""
        return self._api_keys is not None and self._tls is None and self._is_reachable

    def open_port(self, server: grpc.aio.Server, address: str) -> int:
        """Let the server listen; returns the port. Raises RuntimeError."""
        if self._tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._tls.credentials.for_grpc())

    def reloaders(
        self, metrics: ReloadMetrics
    ) -> list[Reloader[Identity] | Reloader[ApiKeys] | Reloader[Sealer] | Reloader[SSLContext]]:
        """What keeps all this as the files are, each to be followed."""
        sources = (self._tls, self._api_keys, self._sealer, self._store_tls)
        return [source.reloader(metrics) for source in sources if source is not None]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
