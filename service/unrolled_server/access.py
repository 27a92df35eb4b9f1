"""Who may connect: TLS as configured, from files that are read again when they change."""

from __future__ import annotations

import grpc.aio

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


class Access:
    """What the server shows its callers, and asks of them."""

    def __init__(self, config: Config) -> None:
        """Read all files. Raises FileError."""
        self._tls: Tls | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            recipe = identity_recipe(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._tls = Tls(recipe)

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    def open_port(self, server: grpc.aio.Server, address: str) -> int:
        """Let the server listen; returns the port. Raises RuntimeError."""
        if self._tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._tls.credentials.for_grpc())

    def reloaders(self, metrics: ReloadMetrics) -> list[Reloader[Identity]]:
        """What keeps all this as the files are, each to be followed."""
        return [] if self._tls is None else [self._tls.reloader(metrics)]
