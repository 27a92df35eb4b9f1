"""TLS from the client's side: which servers are believed, and which arguments say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
import unrolled
from client.command import environment, run
from client.fake_service import FakeService, served
from support.tls import Files, expired, local, written


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def root(folder: Path, ca: trustme.CA) -> str:
    """The authority's file."""
    ca.cert_pem.write_to_path(folder / "ca.pem")
    return str(folder / "ca.pem")


@pytest.fixture(scope="module")
def own(folder: Path, ca: trustme.CA) -> Files:
    """What the client shows."""
    return written(folder, "client", ca.issue_cert("somebody@example.com"))


@pytest.fixture(scope="module")
def secured(ca: trustme.CA) -> Iterator[FakeService]:
    with served(server_credentials(local(ca))) as service:
        yield service


@pytest.fixture(scope="module")
def mutual(ca: trustme.CA) -> Iterator[FakeService]:
    """It wants to see a certificate, and its own is for another name."""
    with served(server_credentials(ca.issue_cert("models.example.com"), ca)) as service:
        yield service


def server_credentials(
    issued: trustme.LeafCert, clients: trustme.CA | None = None
) -> grpc.ServerCredentials:
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), chain)],
        None if clients is None else clients.cert_pem.bytes(),
        clients is not None,
    )


def test_a_server_of_a_known_authority(secured: FakeService, root: str) -> None:
    with unrolled.Client(secured.target, tls=unrolled.Tls(ca=root)) as client:
        assert client.model("tiny").name == "tiny"


async def test_the_same_for_asyncio(secured: FakeService, root: str) -> None:
    async with unrolled.AsyncClient(secured.target, tls=unrolled.Tls(ca=Path(root))) as client:
        assert (await client.model("tiny")).name == "tiny"


def test_a_client_that_shows_a_certificate(mutual: FakeService, root: str, own: Files) -> None:
    tls = unrolled.Tls(root, own.cert, own.key, server_name="models.example.com")
    with unrolled.Client(mutual.target, tls=tls) as client:
        assert client.model("tiny").name == "tiny"


def test_servers_that_are_not_believed(
    secured: FakeService, mutual: FakeService, fake: FakeService, ca: trustme.CA, root: str,
    own: Files,
) -> None:  # fmt: skip
    with served(server_credentials(expired(ca))) as late:
        refused: dict[str, tuple[str, unrolled.Tls | bool]] = {
            "an authority that is not public": (secured.target, True),
            "expired": (late.target, unrolled.Tls(root)),
            "another name": (mutual.target, unrolled.Tls(root, own.cert, own.key)),
            "plain text": (fake.target, unrolled.Tls(root)),
            "wants a certificate": (
                mutual.target,
                unrolled.Tls(root, server_name="models.example.com"),
            ),
            "wants TLS": (secured.target, False),
        }
        for case, (target, tls) in refused.items():
            with unrolled.Client(target, tls=tls) as client, pytest.raises(unrolled.Unavailable):
                pytest.fail(f"{case}: {client.models()}")


def test_files_that_cannot_be_used(tmp_path: Path, root: str, own: Files) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("rubbish")
    with pytest.raises(ValueError, match=f"{bad}: is not one or more certificates"):
        unrolled.Client(tls=unrolled.Tls(ca=bad))
    with pytest.raises(ValueError, match=f"{own.cert} and {root}: are not"):
        unrolled.Client(tls=unrolled.Tls(cert=own.cert, key=root))
    with pytest.raises(FileNotFoundError):
        unrolled.Client(tls=unrolled.Tls(ca=tmp_path / "none.pem"))
    with pytest.raises(ValueError, match="go together"):
        unrolled.Tls(cert=own.cert)
    with pytest.raises(ValueError, match="either tls or credentials"):
        unrolled.Client(tls=True, credentials=grpc.ssl_channel_credentials())


def test_the_command_line(secured: FakeService, root: str) -> None:
    target = ("--server", secured.target)

    for arguments, variables in (
        (("--tls-ca", root, "models"), {}),
        (("models", "--tls-ca", root), {}),
        (("models",), {"UNROLLED_TLS_CA": root}),
    ):
        done = run(*target, *arguments, env=environment(**variables))
        assert ("tiny/1" in done.stdout, done.stderr, done.returncode) == (True, "", 0)


def test_the_command_line_shows_a_certificate(mutual: FakeService, root: str, own: Files) -> None:
    named = ("--tls-server-name", "models.example.com")
    done = run("--server", mutual.target, "models", "--tls-ca", root, *named, *own.flags())
    assert (done.stderr, done.returncode) == ("", 0)

    variables = {
        "UNROLLED_SERVER": mutual.target,
        "UNROLLED_TLS_CA": root,
        "UNROLLED_TLS_CLIENT_CERT": str(own.cert),
        "UNROLLED_TLS_CLIENT_KEY": str(own.key),
        "UNROLLED_TLS_SERVER_NAME": "models.example.com",
    }
    done = run("models", env=environment(**variables))
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_command_line_says_what_to_do(secured: FakeService, root: str, tmp_path: Path) -> None:
    target = ("--server", secured.target)
    missing = str(tmp_path / "none.pem")
    cases: tuple[tuple[tuple[str, ...], dict[str, str], int, str], ...] = (
        ((), {}, 1, "wants TLS (--tls"),
        (("--tls",), {}, 1, "--tls-ca names the authorities"),
        ((), {"UNROLLED_TLS": "1"}, 1, "--tls-ca names the authorities"),
        ((), {"UNROLLED_TLS": "perhaps"}, 2, "UNROLLED_TLS=perhaps is neither 1 nor 0"),
        (("--tls-ca", missing), {}, 2, f"{missing}: No such file"),
        (("--tls-cert", root), {}, 2, "--tls-cert and --tls-key go together"),
    )
    for arguments, variables, status, said in cases:
        done = run(*target, "models", *arguments, env=environment(**variables))
        assert (done.stdout, done.returncode) == ("", status)
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
