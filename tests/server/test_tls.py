"""TLS: who is let in, and certificates that are replaced while the server runs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme
from client.command import run
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support.calls import SECONDS
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server
from support.tls import Files, expired, local, trusting, written
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.model_pb2 import ListModelsRequest
from unrolled.v1.model_pb2_grpc import ModelServiceStub
from unrolled_server.files import FileError
from unrolled_server.tls import identity_recipe

EXPIRY = "unrolled_tls_certificate_expiry_timestamp_seconds"
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def client_ca(folder: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "client-ca.pem")
    return authority


@pytest.fixture(scope="module")
def tls_server(
    repository: Repository, folder: Path, ca: trustme.CA, client_ca: trustme.CA
) -> Iterator[RunningServer]:
    """A server that shows a certificate and wants one; for tests that change no file."""
    flags = written(folder, "server", local(ca)).flags()
    required = ("--tls-client-ca", str(folder / "client-ca.pem"))
    with running_server(repository.path, *flags, *required) as running:
        yield running


@pytest.fixture
def files(tmp_path: Path, ca: trustme.CA) -> Files:
    return written(tmp_path, "server", local(ca))


@pytest.fixture
def changing(repository: Repository, files: Files) -> Iterator[RunningServer]:
    """A server whose `files` a test may change."""
    with running_server(repository.path, *files.flags()) as running:
        yield running


def ask(server: RunningServer, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call over a connection of its own ends."""
    options = [OWN_CONNECTION]
    channel = (
        grpc.insecure_channel(server.address, options)
        if credentials is None
        else grpc.secure_channel(server.address, credentials, options)
    )
    with channel:
        try:
            ModelServiceStub(channel).ListModels(ListModelsRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_client_with_a_certificate_is_served(
    tls_server: RunningServer, ca: trustme.CA, client_ca: trustme.CA
) -> None:
    credentials = trusting(ca, client_ca.issue_cert("somebody@example.com"))

    assert ask(tls_server, credentials) == grpc.StatusCode.OK
    assert any("tls=True" in line for line in tls_server.log)


def test_strangers_are_not_served(
    tls_server: RunningServer, ca: trustme.CA, client_ca: trustme.CA
) -> None:
    strangers = {
        "plain text": None,
        "no certificate": trusting(ca),
        "somebody else's certificate": trusting(ca, ca.issue_cert("somebody@example.com")),
        "an expired certificate": trusting(ca, expired(client_ca)),
        "trusts another authority": trusting(client_ca, client_ca.issue_cert("s@example.com")),
    }

    answers = {who: ask(tls_server, shown) for who, shown in strangers.items()}

    assert answers == dict.fromkeys(strangers, grpc.StatusCode.UNAVAILABLE)


def test_health_over_tls(
    tls_server: RunningServer, ca: trustme.CA, client_ca: trustme.CA, folder: Path
) -> None:
    ca.cert_pem.write_to_path(folder / "ca.pem")
    shown = written(folder, "client", client_ca.issue_cert("somebody@example.com"))
    asked = ("health", "--server", tls_server.address)

    done = run(*asked, "--tls-ca", str(folder / "ca.pem"), *shown.flags())
    assert (done.stdout, done.stderr) == (f"{tls_server.address} is serving\n", "")

    done = run(*asked)
    assert (done.stdout, done.returncode) == ("", 1)
    assert "wants TLS" in done.stderr


def test_strangers_leave_nothing_in_the_log(changing: RunningServer, ca: trustme.CA) -> None:
    assert ask(changing, None) == grpc.StatusCode.UNAVAILABLE
    assert ask(changing, trusting(trustme.CA())) == grpc.StatusCode.UNAVAILABLE

    _, log = changing.terminate()
    assert [line.split("event=")[1].strip() for line in log.splitlines()] == ["draining", "stopped"]


def test_a_certificate_replaced_under_load_fails_no_call(
    changing: RunningServer, files: Files, ca: trustme.CA
) -> None:
    later = trustme.CA()
    both = grpc.ssl_channel_credentials(ca.cert_pem.bytes() + later.cert_pem.bytes())
    swapped = threading.Event()

    def turns_over_one_connection() -> int:
        request = CompleteRequest(model="lstm", prompt="a", max_tokens=20)
        turns = 0
        with grpc.secure_channel(changing.address, both, [OWN_CONNECTION]) as channel:
            stub = CompletionServiceStub(channel)
            while not swapped.is_set():
                stub.Complete(request, timeout=SECONDS)
                turns += 1
            stub.Complete(request, timeout=SECONDS)
        return turns

    def a_connection_for_each_call() -> set[grpc.StatusCode]:
        answers = set()
        while not swapped.is_set():
            answers.add(ask(changing, both))
        return answers

    with ThreadPoolExecutor() as threads:
        turns = threads.submit(turns_over_one_connection)
        answers = [threads.submit(a_connection_for_each_call) for _ in range(2)]
        try:
            for changes in (1, 2):
                files.write(local(later))
                changed(changing, "good", changes)
        finally:
            swapped.set()

    assert turns.result() > 0
    assert [answer.result() for answer in answers] == [{grpc.StatusCode.OK}] * 2
    assert ask(changing, trusting(later)) == grpc.StatusCode.OK
    assert ask(changing, trusting(ca)) == grpc.StatusCode.UNAVAILABLE


def test_the_last_good_certificate_stays(
    changing: RunningServer, files: Files, ca: trustme.CA
) -> None:
    metrics = Metrics(changing.metrics_url)
    for fault in ("rubbish", "empty", "gone", "another key", "expired"):
        good, before = trusting(ca), metrics.value(EXPIRY)
        spoil(files, ca, fault)
        metrics.wait_for("unrolled_files_good", 0, files="tls")

        assert ask(changing, good) == grpc.StatusCode.OK, fault
        assert metrics.value(EXPIRY) == before > time.time()

        ca = trustme.CA()
        files.write(local(ca))
        metrics.wait_for("unrolled_files_good", 1, files="tls")

        assert ask(changing, trusting(ca)) == grpc.StatusCode.OK, fault
        assert ask(changing, good) == grpc.StatusCode.UNAVAILABLE, fault
    _, log = changing.terminate()
    complaints = [line for line in log.splitlines() if "event=files_turned_bad" in line]
    assert f"--tls-key {files.key}: No such file" in "".join(complaints)
    assert log.count("event=files_reloaded files=tls") == 5


def test_authorities_of_clients_are_replaced_too(
    repository: Repository, files: Files, ca: trustme.CA, tmp_path: Path
) -> None:
    first, second = trustme.CA(), trustme.CA()
    authorities = tmp_path / "clients.pem"
    first.cert_pem.write_to_path(authorities)
    flags = (*files.flags(), "--tls-client-ca", str(authorities))
    with running_server(repository.path, *flags) as server:
        second.cert_pem.write_to_path(authorities)
        changed(server, "good", 1)

        assert ask(server, trusting(ca, first.issue_cert("a@b.c"))) == grpc.StatusCode.UNAVAILABLE
        assert ask(server, trusting(ca, second.issue_cert("a@b.c"))) == grpc.StatusCode.OK
        assert ask(server, trusting(ca)) == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("fault", "flag", "problem"),
    [
        ("rubbish", "--tls-cert", "is not one or more certificates in PEM"),
        ("empty", "--tls-cert", "is not one or more certificates in PEM"),
        ("another key", "--tls-key", "is not the key of the first certificate"),
        ("expired", "--tls-cert", "has expired on"),
        ("not yet valid", "--tls-cert", "is not valid before"),
        ("no key", "--tls-key", "is not a private key in PEM"),
        ("passphrase", "--tls-key", "is encrypted"),
        ("rubbish for clients", "--tls-client-ca", "is not one or more certificates in PEM"),
    ],
)
def test_files_that_a_server_does_not_start_with(
    files: Files, ca: trustme.CA, fault: str, flag: str, problem: str
) -> None:
    authorities = files.cert.with_name("clients.pem")
    ca.cert_pem.write_to_path(authorities)
    spoil(files, ca, fault)
    named = {"--tls-cert": files.cert, "--tls-key": files.key, "--tls-client-ca": authorities}

    with pytest.raises(FileError) as caught:
        identity_recipe(files.cert, files.key, authorities).read()
    assert str(caught.value).startswith(f"{flag} {named[flag]}: ")
    assert problem in str(caught.value)


def test_others_in_the_files_may_be_out_of_date(files: Files, ca: trustme.CA) -> None:
    """As in the chains and bundles of public authorities."""
    good, end = files.cert.read_bytes(), identity_recipe(files.cert, files.key, None).read()
    late = expired(ca).cert_chain_pems[0].bytes()
    files.cert.write_bytes(good + late)
    authorities = files.cert.with_name("clients.pem")
    authorities.write_bytes(ca.cert_pem.bytes() + late)

    made = identity_recipe(files.cert, files.key, authorities).read()
    assert made.value.expires == end.value.expires > datetime.now(UTC)


def test_a_server_does_not_start_with_a_bad_file(repository: Repository, files: Files) -> None:
    files.key.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "unrolled_server", "--models", repository.path, *files.flags()],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.returncode == 1
    assert done.stderr == f"unrolled-server: --tls-key {files.key}: is not a private key in PEM\n"


def changed(server: RunningServer, result: str, times: int) -> None:
    """Return once the server has noticed so many changes of its files."""
    metrics = Metrics(server.metrics_url)
    metrics.wait_for("unrolled_file_reloads_total", times, files="tls", result=result)


def spoil(files: Files, ca: trustme.CA, fault: str) -> None:
    """Do something to the files that makes them of no use."""
    if fault == "rubbish":
        files.cert.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n")
    elif fault == "empty":
        files.cert.write_bytes(b"")
    elif fault == "gone":
        files.key.unlink()
    elif fault == "another key":
        files.key.write_bytes(local(ca).private_key_pem.bytes())
    elif fault == "expired":
        files.write(expired(ca))
    elif fault == "not yet valid":
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        later = tomorrow + timedelta(days=1)
        files.write(ca.issue_cert("127.0.0.1", not_before=tomorrow, not_after=later))
    elif fault == "no key":
        files.key.write_bytes(files.cert.read_bytes())
    elif fault == "passphrase":
        key = load_pem_private_key(files.key.read_bytes(), None)
        locked = BestAvailableEncryption(b"secret")
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    else:
        files.cert.with_name("clients.pem").write_text("rubbish")
