"""The configuration: flags, environment, precedence, and errors that name their source."""

from __future__ import annotations

import math
import tomllib
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unrolled_server.config import Config, ConfigError, parse_config
from unrolled_server.redis_url import without_password

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())

DEFAULTS = {
    "host": "127.0.0.1",
    "port": 50051,
    "metrics_port": 9464,
    "device": "auto",
    "threads": 0,
    "max_rows": 256,
    "max_waiting": 1024,
    "max_sessions": 100_000,
    "max_tokens": 65_536,
    "max_prompt_bytes": 1_048_576,
    "prefix_cache_bytes": 64 << 20,
    "session_ttl": 3600.0,
    "session_max_age": 0.0,
    "store": "sqlite",
    "data_dir": None,
    "store_sync": "full",
    "store_timeout": 2.0,
    "store_replicas": 0,
    "seal_key_file": None,
    "tls_cert": None,
    "tls_key": None,
    "tls_client_ca": None,
    "api_key_file": None,
    "flush_tokens": 16,
    "flush_interval": 0.02,
    "flush_rate": 500,
    "write_timeout": 30.0,
    "drain_timeout": 30.0,
    "slow_turn": 1.0,
    "otlp_endpoint": None,
    "log_level": "info",
    "log_format": "text",
}

GOOD: list[tuple[str, str, Any]] = [
    ("host", "0.0.0.0", "0.0.0.0"),  # noqa: S104 - never listened on
    ("host", "::1", "::1"),
    ("port", "0", 0),
    ("port", "65535", 65535),
    ("metrics_port", "0", 0),
    ("metrics_port", "9000", 9000),
    ("metrics_port", "off", None),
    *(("device", device, device) for device in ("auto", "cpu", "cuda")),
    ("threads", "0", 0),
    ("threads", "3", 3),
    ("max_rows", "1", 1),
    ("max_waiting", "0", 0),
    ("max_sessions", "1", 1),
    ("max_tokens", "1", 1),
    ("max_prompt_bytes", "17", 17),
    ("prefix_cache_bytes", "0", 0),
    ("session_ttl", "0", 0.0),
    ("session_ttl", "7d", 604_800.0),
    ("session_ttl", "15m", 900.0),
    ("session_ttl", "3650d", 315_360_000.0),
    ("session_ttl", "90", 90.0),
    *(("store", store, store) for store in ("memory", "sqlite", "sqlite:s.db", "sqlite:../a:b")),
    ("data_dir", "no/such/folder", Path("no/such/folder")),
    *(
        ("store", url, url)
        for url in ("redis://h", "redis://:s@h:1/2", "rediss://u:p@h?db=3", "unix:///s.sock?db=1")
    ),
    *(
        ("store", f"rediss://u:p%40@[::1]:1/2?{options}", f"rediss://u:p%40@[::1]:1/2?{options}")
        for options in (
            "ssl_ca_certs=ca.pem&ssl_certfile=c.pem&ssl_keyfile=c.key",
            "ssl_cert_reqs=required&ssl_check_hostname=False",
            "ssl_cert_reqs=none",
        )
    ),
    *(("store_sync", sync, sync) for sync in ("full", "normal")),
    ("store_timeout", "500ms", 0.5),
    ("store_replicas", "2", 2),
    ("seal_key_file", "/dev/null", Path("/dev/null")),
    ("api_key_file", "/dev/null", Path("/dev/null")),
    ("flush_tokens", "1", 1),
    ("flush_interval", "0ms", 0.0),
    ("flush_interval", "1.5s", 1.5),
    ("write_timeout", "250ms", 0.25),
    ("slow_turn", "0", 0.0),
    ("otlp_endpoint", "http://[::1]:4317", "http://[::1]:4317"),
    ("otlp_endpoint", "https://collector", "https://collector"),
    ("write_timeout", "0.5h", 1800.0),
    ("drain_timeout", "0", 0.0),
    ("drain_timeout", "2m", 120.0),
    *(("log_level", level, level) for level in ("debug", "info", "warning", "error")),
    *(("log_format", form, form) for form in ("text", "json")),
]

BAD = [
    ("models", "no/such/folder", "no such folder"),
    *(
        (name, text, "no such file")
        for name in ("seal_key_file", "tls_cert", "tls_key", "tls_client_ca", "api_key_file")
        for text in ("no/such/file", ".")
    ),
    *((name, text, "0 to 65535") for name in ("port", "metrics_port") for text in ("-1", "65536")),
    *(
        (name, text, text or "invalid")
        for name in ("port", "metrics_port", "threads", "max_rows", "max_waiting", "max_sessions",
                     "max_tokens", "max_prompt_bytes", "flush_tokens")
        for text in ("many", "1.5", "1e3", "0x10", "1MB")
    ),
    *((name, "-1", "at least 0") for name in ("threads", "max_waiting")),
    *(
        (name, text, "at least 1")
        for name in ("max_rows", "max_sessions", "max_tokens", "max_prompt_bytes", "flush_tokens")
        for text in ("0", "-1")
    ),
    *(
        (name, text, "20ms, 30s, 15m, 1h or 7d")
        for name in ("session_ttl", "flush_interval", "write_timeout", "slow_turn")
        for text in ("soon", "-1s", "1 h", "1w", "h", ".5s", "1.s", "1e3", "inf", "nan", "1h30m")
    ),
    *(
        (name, text, "at most 3650d")
        for name in ("session_ttl", "session_max_age")
        for text in ("3651d", "3000000d")
    ),
    *(
        ("otlp_endpoint", text, "http://HOST:PORT")
        for text in ("collector:4317", "grpc://collector:4317", "http://", "/socket")
    ),
    *(
        (name, text, "more than 0")
        for name in ("write_timeout", "store_timeout")
        for text in ("0", "0s", "0.0ms")
    ),
    ("store_replicas", "-1", "at least 0"),
    *(("store", text, "memory, sqlite, sqlite:FILE, or a URL") for text in ("sqlite:", "/a")),
    *(("store", text, "HOST[:PORT]") for text in ("redis:", "redis:///1", "rediss:h", "unix://")),
    ("store", "redis://h:99999", "0 to 65535"),
    *(("store", text, "not a number") for text in ("redis://h/one", "unix:///s?db=x")),
    ("store", "redis://h?socket_timeout=9", "unknown option socket_timeout"),
    *(
        ("store", f"{url}?ssl_ca_certs=f", "ssl_ca_certs is for rediss://")
        for url in ("redis://h", "unix:///s")
    ),
    ("store", "rediss://h?ssl_certfile=f", "ssl_certfile needs ssl_keyfile"),
    ("store", "rediss://h?ssl_keyfile=f", "ssl_keyfile needs ssl_certfile"),
    *(
        ("store", f"rediss://h?ssl_cert_reqs={text}", "ssl_cert_reqs is one of required, none")
        for text in ("", "optional", "CERT_NONE")
    ),
    ("store", "rediss://h?ssl_check_hostname=no", "ssl_check_hostname is one of true, false"),
    ("store", "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=f", "trusts anybody"),
    ("data_dir", __file__, "not a folder"),
    ("store", "sqlite:no/such/folder/sessions.db", "no folder no/such/folder"),
    *(("store_sync", text, "full, normal") for text in ("FULL", "off")),
    *(("device", text, "auto, cpu, cuda") for text in ("tpu", "CPU", "cuda:0")),
    *(("log_format", text, "text, json") for text in ("logfmt", "JSON")),
    *(("log_level", text, "debug, info, warning, error") for text in ("loud", "INFO", "warn")),
]  # fmt: skip


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return "UNROLLED_" + name.upper()


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """The flag that is always needed."""
    return ["--models", str(tmp_path)]


def changed(config: Config) -> dict[str, Any]:
    """The settings that are not as they are by default, but for the folder."""
    facts = asdict(config)
    del facts["models"]
    assert facts.keys() == DEFAULTS.keys()
    return {name: value for name, value in facts.items() if value != DEFAULTS[name]}


def beyond_default(name: str, value: object) -> dict[str, Any]:
    return {} if DEFAULTS[name] == value else {name: value}


def test_defaults(models: list[str], tmp_path: Path) -> None:
    config = parse_config(models, {})
    assert config.models == tmp_path
    assert changed(config) == {}


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_flag_sets_one_thing(models: list[str], name: str, text: str, value: object) -> None:
    for given_as in ([flag(name), text], [f"{flag(name)}={text}"]):
        config = parse_config([*models, *given_as], {})
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(value)
        assert changed(config) == beyond_default(name, value)


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_variable_sets_one_thing(models: list[str], name: str, text: str, value: object) -> None:
    config = parse_config(models, {variable(name): text})
    assert getattr(config, name) == value
    assert changed(config) == beyond_default(name, value)


def test_models_in_the_environment(tmp_path: Path) -> None:
    assert parse_config([], {"UNROLLED_MODELS": str(tmp_path)}).models == tmp_path


def test_a_flag_wins_over_the_environment(models: list[str], tmp_path: Path) -> None:
    environment = {
        "UNROLLED_MODELS": "no/such/folder",
        "UNROLLED_PORT": "not even a port",
        "UNROLLED_MAX_ROWS": "7",
        "UNROLLED_SESSION_TTL": "5m",
    }
    config = parse_config([*models, "--port", "1", "--max-rows", "256"], environment)
    assert config.models == tmp_path
    assert changed(config) == {"port": 1, "session_ttl": 300.0}


def test_the_last_of_two_equal_flags_wins(models: list[str]) -> None:
    assert changed(parse_config([*models, "--port", "1", "--port", "2"], {})) == {"port": 2}


def test_an_empty_variable_is_not_set(models: list[str]) -> None:
    environment = {variable(name): "" for name in ["models", *DEFAULTS]}
    assert changed(parse_config(models, environment)) == {}


def test_other_variables_are_not_looked_at(models: list[str]) -> None:
    environment = {"PORT": "1", "UNROLLED_NO_SUCH_FLAG": "1", "unrolled_port": "1"}
    assert changed(parse_config(models, environment)) == {}


def test_the_environment_and_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ["models", *DEFAULTS]:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.setenv("UNROLLED_MAX_ROWS", "3")
    monkeypatch.setattr("sys.argv", ["unrolled-server", "--models", str(tmp_path)])
    assert changed(parse_config()) == {"max_rows": 3}


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_an_error_names_the_flag_or_the_variable_its_value_and_what_is_allowed(
    models: list[str], name: str, text: str, allowed: str
) -> None:
    arguments = models if name != "models" else []
    with pytest.raises(ConfigError) as by_flag:
        parse_config([*arguments, f"{flag(name)}={text}"], {})
    with pytest.raises(ConfigError) as by_variable:
        parse_config(arguments, {variable(name): text})
    for source, other, caught in (
        (flag(name), variable(name), by_flag),
        (variable(name), flag(name), by_variable),
    ):
        message = str(caught.value)
        assert message.startswith(f"{source} {text}: ")
        assert allowed in message
        assert other not in message
        assert "\n" not in message


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - {"host"}))
def test_an_empty_flag_is_an_error(models: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=flag(name)):
        parse_config([*models, flag(name), ""], {})


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"--models .*file: .*no such folder"):
        parse_config(["--models", str(file)], {})


def test_models_are_needed() -> None:
    with pytest.raises(ConfigError, match="--models is needed"):
        parse_config([], {})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--max_rows", "1"], "--max_rows"),
        (["-p", "1"], "-p"),
        (["stray"], "stray"),
        (["--port"], "--port"),
    ],
)
def test_unknown_arguments_end_the_process(
    models: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config([*models, *arguments], {})
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err.splitlines()[-1]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--version"], {})
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{PROJECT['project']['version']}\n"


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"], {})
    assert caught.value.code == 0
    words = capsys.readouterr().out.split()
    for name in ["models", *DEFAULTS]:
        assert flag(name) in words


@given(
    marks=st.text() | st.text("/?#@[]%:&= 1\n\u2100"), scheme=st.sampled_from(["rediss", "unix"])
)
def test_no_error_quotes_a_password(marks: str, scheme: str) -> None:
    """Nor a part of one with marks that ought to be written otherwise."""
    url = f"{scheme}://u:s3cret{marks}S3CRET@h:1/0"
    assert without_password(url) == f"{scheme}://u:***@h:1/0"
    without_user = f"{scheme}://s3cret{marks.replace(':', '')}S3CRET@h:1/0"
    for store in (url, url.replace("s3cret", "1"), f"{url}?no=such", without_user):
        try:
            parse_config(["--models", ".", "--store", store], {})
        except ConfigError as error:
            message = str(error)
            assert "s3cret" not in message
            assert "S3CRET" not in message


@given(
    number=st.integers(0, 10**6),
    decimals=st.none() | st.integers(0, 999),
    unit=st.sampled_from(
        [("ms", 1e-3), ("s", 1.0), ("", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)]
    ),
)
def test_durations(number: int, decimals: int | None, unit: tuple[str, float]) -> None:
    text, seconds = str(number), float(number)
    if decimals is not None:
        text += f".{decimals:03d}"
        seconds += decimals / 1000
    config = parse_config(["--models", ".", "--slow-turn", text + unit[0]], {})
    assert math.isclose(config.slow_turn, seconds * unit[1], rel_tol=1e-12)


def test_a_configuration_does_not_change(models: list[str]) -> None:
    config = parse_config(models, {})
    with pytest.raises(FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "needed"),
    [("--tls-cert", "--tls-key"), ("--tls-key", "--tls-cert"), ("--tls-client-ca", "--tls-cert")],
)
def test_flags_of_tls_need_each_other(models: list[str], given: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"^{given} needs {needed}"):
        parse_config([*models, given, "/dev/null"], {})


def test_all_flags_of_tls(models: list[str]) -> None:
    flags = ("--tls-cert", "/dev/null", "--tls-key", "/dev/zero", "--tls-client-ca", "/dev/full")
    assert changed(parse_config([*models, *flags], {})) == {
        "tls_cert": Path("/dev/null"),
        "tls_key": Path("/dev/zero"),
        "tls_client_ca": Path("/dev/full"),
    }
