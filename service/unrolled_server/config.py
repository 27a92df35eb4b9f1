"""The server's configuration: read once, from flags and the environment, checked here."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unrolled_server import redis_url

MAX_TTL_SECONDS = 3650 * 86400
"""That a session may be given to live, idle or in all: its ends are within what Timestamp holds."""


class ConfigError(ValueError):
    """A setting is wrong; the message names it, its value and what is allowed."""


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("a port is 0 to 65535")
    return value


def _metrics_port(text: str) -> int | None:
    return None if text == "off" else _port(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("at least 0")
    return value


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if match is None:
        raise ValueError("a time such as 20ms, 30s, 15m, 1h or 7d; a bare number is seconds")
    unit = {"ms": 0.001, "m": 60, "h": 3600, "d": 86400}.get(match[2] or "s", 1)
    return float(match[1]) * unit


def _lifetime(text: str) -> float:
    value = _seconds(text)
    if value > MAX_TTL_SECONDS:
        raise ValueError(f"at most {MAX_TTL_SECONDS // 86400}d; 0: without end")
    return value


def _some_time(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise ValueError("more than 0")
    return value


def _directory(text: str) -> Path:
    path = Path(text)
    if not text or not path.is_dir():
        raise ValueError("there is no such folder")
    return path


def _file(text: str) -> Path:
    path = Path(text)
    if not text or not path.exists() or path.is_dir():
        raise ValueError("there is no such file")
    return path


def _folder_to_be(text: str) -> Path:
    path = Path(text)
    if not text or (path.exists() and not path.is_dir()):
        raise ValueError("not a folder")
    return path


def _store(text: str) -> str:
    kind, _, path = text.partition(":")
    if redis_url.is_redis(text):
        redis_url.check(text)
        return text
    if text not in ("memory", "sqlite") and not (kind == "sqlite" and path):
        raise ValueError("memory, sqlite, sqlite:FILE, or a URL redis://, rediss:// or unix://")
    if path and not Path(path).parent.is_dir():
        raise ValueError(f"there is no folder {Path(path).parent}")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("http://HOST:PORT, or https://HOST:PORT")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text

    return parse


def _text(text: str) -> str:
    return text


def _flag(parse: Callable[[str], Any], default: str | None, text: str) -> Any:
    """A field that is a flag; without a default the flag has to be given."""
    metadata = {"parse": parse, "help": text}
    if default is None:
        return field(metadata=metadata)
    return field(default_factory=lambda: parse(default), metadata={**metadata, "default": default})


def _optional_flag(parse: Callable[[str], Any], text: str) -> Any:
    """A field that is a flag; None unless it is given."""
    return field(default=None, metadata={"parse": parse, "help": text})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting. Field x_y is the flag --x-y and UNROLLED_X_Y in the environment."""

    models: Path = _flag(  # noqa: RUF009 - a dataclass field without a default
        _directory, None, "folder of models: MODEL/VERSION/manifest.json"
    )
    host: str = _flag(_text, "127.0.0.1", "address to listen on")
    port: int = _flag(_port, "50051", "gRPC port; 0 takes a free one")
    metrics_port: int | None = _flag(
        _metrics_port, "9464", "Prometheus port; 0 takes a free one, off records nothing"
    )
    device: str = _flag(
        _one_of("auto", "cpu", "cuda"), "auto", "cpu, cuda, or auto: cuda where it works"
    )
    threads: int = _flag(
        _natural,
        "0",
        "threads that advance one model's turns; 0: half of the usable cores, or 2",
    )
    max_rows: int = _flag(_count, "256", "turns of one model that advance at once")
    max_waiting: int = _flag(_natural, "1024", "turns of one model that wait for a row")
    max_sessions: int = _flag(
        _count, "100000", "sessions held at most; with a store, in memory at most"
    )
    max_tokens: int = _flag(_count, "65536", "largest max_tokens of a turn")
    max_prompt_bytes: int = _flag(_count, "1048576", "longest prompt or text")
    prefix_cache_bytes: int = _flag(
        _natural, "67108864", "states kept of the beginnings of prompts; 0: none"
    )
    session_ttl: float = _flag(_lifetime, "1h", "idle time after which a session ends; 0: never")
    session_max_age: float = _flag(
        _lifetime, "0", "age at which a session ends, however it is used; 0: never"
    )
    store: str = _flag(
        _store,
        "sqlite",
        "where sessions are kept: memory, sqlite:FILE, sqlite, in --data-dir, or"
        " redis://HOST:PORT/DB, with TLS rediss://",
    )
    data_dir: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _folder_to_be,
        "folder of what outlives the server, made if it is not there"
        " (default $XDG_STATE_HOME/unrolled, ~/.local/state/unrolled)",
    )
    store_sync: str = _flag(
        _one_of("full", "normal"),
        "full",
        "full: a turn is on disk before its answer; normal: safe from the server's crash alone",
    )
    store_timeout: float = _flag(
        _some_time, "2s", "how long Redis may take to answer before a call fails"
    )
    store_replicas: int = _flag(
        _natural, "0", "replicas of Redis that are to confirm a turn before its answer"
    )
    seal_key_file: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _file, "keys that snapshots of sessions are sealed with; without it there are none"
    )
    tls_cert: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _file, "certificate, then those it rests on, PEM: serve TLS; read again when it changes"
    )
    tls_key: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _file, "private key of --tls-cert, PEM"
    )
    tls_client_ca: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _file, "authorities, PEM: clients need a certificate of theirs"
    )
    api_key_file: Path | None = _optional_flag(  # noqa: RUF009 - a dataclass field
        _file, "keys of tenants: calls need one; read again when it changes"
    )
    flush_tokens: int = _flag(_count, "16", "drawn tokens after which a message leaves")
    flush_interval: float = _flag(_seconds, "20ms", "time after which a message leaves")
    flush_rate: int = _flag(
        _count, "500", "messages a second of a model's streams together; many wait longer"
    )
    write_timeout: float = _flag(_some_time, "30s", "how long a stream may stay unread")
    drain_timeout: float = _flag(
        _seconds, "30s", "how long turns under way may take to end once the server is told to"
    )
    slow_turn: float = _flag(
        _seconds, "1s", "turns whose first token or commit takes longer are logged; 0: none"
    )
    otlp_endpoint: str | None = _optional_flag(
        _url, "collector of OpenTelemetry that gets a trace of each call, http://HOST:4317"
    )
    log_level: str = _flag(
        _one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
    )
    log_format: str = _flag(_one_of("text", "json"), "text", "text (logfmt) or json")


def parse_config(
    argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> Config:
    """Read the configuration; a flag wins over the environment, that over the default.

    Raises ConfigError; ends the process for --help, --version and flags it does not know.
    """
    given = vars(_parser().parse_args(argv))
    values: dict[str, Any] = {}
    for setting in fields(Config):
        flag, variable = _flag_name(setting.name), _variable_name(setting.name)
        if given[setting.name] is not None:
            values[setting.name] = _parsed(setting.metadata["parse"], flag, given[setting.name])
        elif environment.get(variable):
            parse = setting.metadata["parse"]
            values[setting.name] = _parsed(parse, variable, environment[variable])
        elif setting.default is MISSING and setting.default_factory is MISSING:
            raise ConfigError(f"{flag} is needed: {setting.metadata['help']}")
    config = Config(**values)
    _check_tls(config)
    return config


def _check_tls(config: Config) -> None:
    """Raises ConfigError where a flag of TLS lacks another."""
    needs = {"tls_cert": "tls_key", "tls_key": "tls_cert", "tls_client_ca": "tls_cert"}
    for name, needed in needs.items():
        if getattr(config, name) is not None and getattr(config, needed) is None:
            raise ConfigError(f"{_flag_name(name)} needs {_flag_name(needed)} beside it")


def _parsed(parse: Callable[[str], Any], source: str, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        # Not from the error, whose traceback would quote a password.
        raise ConfigError(f"{source} {redis_url.without_password(text)}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unrolled-server",
        allow_abbrev=False,
        description="Serve recurrent language models over gRPC, with sessions that carry on.",
        epilog="Each flag can be set in the environment: --max-rows is UNROLLED_MAX_ROWS.",
    )
    parser.add_argument("--version", action="version", version=version("unrolled"))
    for setting in fields(Config):
        default = setting.metadata.get("default")
        text = setting.metadata["help"] + (f" (default {default})" if default else "")
        parser.add_argument(_flag_name(setting.name), metavar="VALUE", help=text)
    return parser


def _flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable_name(name: str) -> str:
    return "UNROLLED_" + name.upper()
