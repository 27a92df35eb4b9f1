"""An API key from the client's side: where it is sent, and where it is not."""

from __future__ import annotations

import pytest
import unrolled
from client.command import environment, run
from client.fake_service import FakeService

LOCAL = (
    "127.0.0.1:1",
    "127.0.0.2",
    "localhost",
    "LOCALHOST:1",
    "[::1]:1",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1",
    "unix:/run/unrolled.sock",
)
REMOTE = (
    "10.0.0.1:1",
    "localhost.example.com:1",
    "127.0.0.1.example.com",
    "dns:///example.com:1",
    "dns://127.0.0.1/example.com:1",
    "[::2]:1",
    "ipv4:10.0.0.1:1,127.0.0.1:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
)


@pytest.mark.parametrize("target", LOCAL)
def test_a_key_goes_to_this_machine(target: str) -> None:
    unrolled.Client(target, api_key="key").close()


@pytest.mark.parametrize("target", REMOTE)
def test_a_key_goes_elsewhere_by_tls_only(target: str) -> None:
    with pytest.raises(ValueError, match="would get the API key in plain text: it needs TLS"):
        unrolled.Client(target, api_key="key")
    unrolled.Client(target, api_key="key", tls=True).close()
    unrolled.Client(target, api_key="key", api_key_over_plaintext=True).close()


@pytest.mark.parametrize("key", ["", "a b", "a\n", "\u00e4"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII without spaces"):
        unrolled.Client(api_key=key)


def test_the_command_line(fake: FakeService) -> None:
    elsewhere = ("--server", "models.example.com:1", "models")
    done = run(*elsewhere, "--api-key", "key")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "would get the API key in plain text" in done.stderr
    assert "key" not in done.stderr.split("API key")[1]

    done = run(*elsewhere, env=environment(UNROLLED_API_KEY="key"))
    assert (done.stdout, done.returncode) == ("", 2)

    done = run("--server", fake.target, "models", env=environment(UNROLLED_API_KEY="key"))
    assert done.returncode == 0
