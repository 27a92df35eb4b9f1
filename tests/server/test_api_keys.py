"""API keys and tenants: who is let in, and whose sessions are whose."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import unrolled
from client.command import environment, run
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from support.calls import SECONDS, refusal_of
from support.metrics import Metrics
from support.models import Repository
from support.sealed import key_file
from support.server import RunningServer, running_server
from unrolled.v1 import completion_pb2, model_pb2, session_pb2, session_pb2_grpc
from unrolled_server.api_keys import ApiKeys, keys_recipe
from unrolled_server.errors import Unauthenticated
from unrolled_server.files import FileError

ALICE, ALICE_TOO, BOB = "alice-key-1", "alice-key-2", "bob-key"
METHODS = [
    method
    for file, name in (
        (completion_pb2, "CompletionService"),
        (session_pb2, "SessionService"),
        (model_pb2, "ModelService"),
    )
    for method in file.DESCRIPTOR.services_by_name[name].methods
]
HEADERS = {
    "none": None,
    "wrong": f"Bearer {ALICE}x",
    "of another scheme": f"Basic {ALICE}",
    "bare": ALICE,
    "a hash": f"Bearer {hashlib.sha256(ALICE.encode()).hexdigest()}",
    "empty": "Bearer ",
}


def line(tenant: str, key: str) -> str:
    return f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}\n"


def write(path: Path, *lines: str) -> None:
    path.write_text("".join(lines))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write(path, "# tenants\n\n", line("alice", ALICE), line("bob", BOB))
    return path


@pytest.fixture
def server(repository: Repository, keys: Path) -> Iterator[RunningServer]:
    """A server whose `keys` a test may change."""
    with running_server(repository.path, "--api-key-file", str(keys)) as running:
        yield running


@pytest.fixture(scope="module")
def shared(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server for tests that leave its keys alone."""
    folder = tmp_path_factory.mktemp("keys")
    write(folder / "keys", line("alice", ALICE), line("alice", ALICE_TOO), line("bob", BOB))
    seal = key_file(folder / "seal.keys", "a")
    flags = ("--api-key-file", str(folder / "keys"), "--seal-key-file", str(seal))
    with running_server(repository.path, *flags) as running:
        yield running


@pytest.fixture
def alice(shared: RunningServer) -> Iterator[unrolled.Client]:
    with unrolled.Client(shared.address, api_key=ALICE) as client:
        yield client


@pytest.fixture
def bob(shared: RunningServer) -> Iterator[unrolled.Client]:
    with unrolled.Client(shared.address, api_key=BOB) as client:
        yield client


def test_every_method_wants_a_key_and_says_so_in_one_way(shared: RunningServer) -> None:
    refusals = []
    with grpc.insecure_channel(shared.address) as channel:
        for header in HEADERS.values():
            metadata = () if header is None else (("authorization", header),)
            for method in METHODS:
                path = f"/{method.containing_service.full_name}/{method.name}"
                call: Any = channel.stream_stream(path)
                with pytest.raises(grpc.RpcError) as caught:
                    # Not a message of the contract: nothing is read before the key is known.
                    list(call(iter([b"\xff"]), SECONDS, metadata))
                refusals.append(refusal_of(caught.value))

    assert len(refusals) == len(HEADERS) * len(METHODS) > 70
    assert all(refusal == refusals[0] for refusal in refusals)
    assert (refusals[0].code, refusals[0].reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


@pytest.mark.parametrize("header", [f"Bearer {ALICE}", f"bearer  {ALICE}"])
def test_a_key_opens(shared: RunningServer, header: str) -> None:
    with grpc.insecure_channel(shared.address) as channel:
        call: Any = channel.unary_unary("/unrolled.v1.ModelService/ListModels")
        assert call(b"", SECONDS, (("authorization", header),))


def test_health_and_reflection_take_no_key(shared: RunningServer) -> None:
    with grpc.insecure_channel(shared.address) as channel:
        health: Any = HealthStub(channel)
        checked = health.Check(HealthCheckRequest(), timeout=SECONDS)
        assert checked.status == HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([ServerReflectionRequest(list_services="")])
        (answer,) = reflection.ServerReflectionInfo(asked, timeout=SECONDS)
        assert answer.list_services_response.service
    assert Metrics(shared.metrics_url).value("unrolled_files_good", files="api_keys") == 1


USES: dict[str, Callable[[unrolled.Client, str], object]] = {
    "get": lambda client, name: client.session(name),
    "complete": lambda client, name: client.complete("a", session=name, max_tokens=1),
    "repeated": lambda client, name: client.complete(
        "a", session=name, max_tokens=1, request_id="1"
    ),
    "stream": lambda client, name: list(client.stream("a", session=name, max_tokens=1)),
    "score": lambda client, name: client.score("ab", session=name),
    "fork": lambda client, name: session(client, name).fork(),
    "export": lambda client, name: session(client, name).export(),
    "delete": lambda client, name: session(client, name).delete(),
    "converse": lambda client, name: opened(client, name),
}


def session(client: unrolled.Client, name: str) -> unrolled.Session:
    """A session that nobody asked the server for."""
    return unrolled.Session(client._connection, session_pb2.Session(name=name), owned=False)


def opened(client: unrolled.Client, name: str) -> None:
    with client.converse() as conversation:
        conversation.open(session=name)
        (event,) = [next(iter(conversation))]
    if event.HasField("error"):
        raise unrolled.error_from_status(event.error)


@pytest.mark.parametrize("use", USES)
def test_a_foreign_session_is_unknown(
    alice: unrolled.Client, bob: unrolled.Client, use: str
) -> None:
    with alice.create_session("lstm", seed=1) as hers:
        hers.complete("abc", max_tokens=3, request_id="1")
        never = hers.name[:-1] + ("0" if hers.name[-1] != "0" else "1")

        with pytest.raises(unrolled.NotFound) as foreign:
            USES[use](bob, hers.name)
        with pytest.raises(unrolled.NotFound) as unknown:
            USES[use](bob, never)

        assert foreign.value.reason == unknown.value.reason == "SESSION_NOT_FOUND"
        assert foreign.value.message.replace(hers.name, never) == unknown.value.message
        assert alice.session(hers.name).position == 6


def test_lists_hold_only_ones_own(alice: unrolled.Client, bob: unrolled.Client) -> None:
    with (
        alice.create_session("lstm") as hers,
        bob.create_session("lstm") as his,
        hers.fork() as child,
    ):
        assert {each.name for each in alice.sessions()} == {hers.name, child.name}
        assert [each.name for each in bob.sessions("lstm")] == [his.name]
    assert list(alice.sessions()) == list(bob.sessions()) == []


def test_keys_of_one_tenant_share_its_sessions(
    alice: unrolled.Client, shared: RunningServer
) -> None:
    with (
        unrolled.Client(shared.address, api_key=ALICE_TOO) as too,
        alice.create_session("lstm") as hers,
    ):
        assert too.session(hers.name).name == hers.name
        with too.import_session(hers.export()) as copy:
            assert alice.session(copy.name).position == 0


def test_a_snapshot_is_of_no_use_to_another_tenant(
    alice: unrolled.Client, bob: unrolled.Client
) -> None:
    with alice.create_session("lstm") as hers:
        snapshot = hers.export()
    with pytest.raises(unrolled.InvalidArgument) as foreign:
        bob.import_session(snapshot)
    with pytest.raises(unrolled.InvalidArgument) as damaged:
        bob.import_session(snapshot[:-1])

    assert foreign.value.message == damaged.value.message


async def test_asyncio_and_conversations_send_the_key(shared: RunningServer) -> None:
    async with (
        unrolled.AsyncClient(shared.address, api_key=ALICE) as client,
        client.create_session("lstm") as hers,
    ):
        assert (await hers.complete("a", max_tokens=1)).outcome.position == 2
        assert [delta async for delta in client.stream("a", model="lstm", max_tokens=1)]
        async with client.converse() as conversation:
            await conversation.open(session=hers.name)
            event = await anext(aiter(conversation))
            assert event.opened.name == hers.name


def test_the_command_line_says_what_to_do(shared: RunningServer) -> None:
    asked = ("models", "--server", shared.address)
    done = run(*asked, env=environment(UNROLLED_API_KEY=BOB))
    assert ("lstm/1" in done.stdout, done.stderr) == (True, "")

    done = run(*asked)
    assert (done.stdout, done.returncode) == ("", 1)
    assert "(UNAUTHENTICATED): --api-key or UNROLLED_API_KEY" in done.stderr


def test_stored_sessions_stay_their_tenants_own(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    """In memory, and after a restart that finds them in the store alone."""
    flags = ("--api-key-file", str(keys), "--store", f"sqlite:{tmp_path / 'sessions'}")
    name = ""
    for _ in range(2):
        with running_server(repository.path, *flags) as server:
            with (
                unrolled.Client(server.address, api_key=ALICE) as alice,
                unrolled.Client(server.address, api_key=BOB) as bob,
            ):
                name = name or alice.create_session("lstm").name
                assert [each.name for each in bob.sessions()] == []
                with pytest.raises(unrolled.NotFound):
                    bob.session(name)
                with grpc.insecure_channel(server.address) as channel:
                    delete = session_pb2_grpc.SessionServiceStub(channel).DeleteSession
                    with pytest.raises(grpc.RpcError) as caught:
                        delete(
                            session_pb2.DeleteSessionRequest(name=name),
                            metadata=(("authorization", f"Bearer {BOB}"),),
                        )
                    assert refusal_of(caught.value).code == "NOT_FOUND"
                alice.session(name).complete("a", max_tokens=1)
                assert [each.name for each in alice.sessions()] == [name]
            server.terminate()


def test_keys_are_replaced_while_the_server_runs(server: RunningServer, keys: Path) -> None:
    metrics = Metrics(server.metrics_url)
    with (
        unrolled.Client(server.address, api_key=ALICE) as alice,
        unrolled.Client(server.address, api_key=BOB) as bob,
        unrolled.Client(server.address, api_key=ALICE_TOO) as too,
    ):
        hers = alice.create_session("lstm").name
        with pytest.raises(unrolled.Unauthenticated):
            too.models()

        write(keys, line("alice", ALICE_TOO), line("bob", BOB))
        metrics.wait_for("unrolled_file_reloads_total", 1, files="api_keys", result="good")
        assert too.session(hers).name == hers
        with pytest.raises(unrolled.Unauthenticated):
            alice.models()

        write(keys, line("alice", ALICE), "bob\n")
        metrics.wait_for("unrolled_files_good", 0, files="api_keys")
        assert too.models()
        assert bob.models()
        with pytest.raises(unrolled.Unauthenticated):
            alice.models()
    _, log = server.terminate()
    assert f"--api-key-file {keys}: line 2: TENANT SHA256 are two words, not 1" in log


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what it warns of
def test_keys_in_plain_text_are_warned_of(repository: Repository, keys: Path, host: str) -> None:
    with running_server(repository.path, "--api-key-file", str(keys), "--host", host) as server:
        log = "".join(server.log)
    warned = "event=api_keys_come_in_plain_text host=0.0.0.0" in log
    assert warned == (host == "0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        (line("a", "1") + "b\n", "line 2: TENANT SHA256 are two words, not 1"),
        (line("a", "1") + "\nb c d\n", "line 3: TENANT SHA256 are two words, not 3"),
        ("a/b " + "0" * 64, "line 1: a tenant is"),
        ("ä " + "0" * 64, "line 1: a tenant is"),
        ("a " + "0" * 63, "line 1: the SHA-256 of a key is 64 hexadecimal digits"),
        ("a my-secret-key", "line 1: the SHA-256 of a key is 64 hexadecimal digits"),
        (line("a", "1") + line("b", "1"), "line 2: the same key as in a line before it"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(FileError) as caught:
        keys_recipe(path).read()
    assert str(caught.value).startswith(f"--api-key-file {path}: {problem}")
    assert "my-secret-key" not in str(caught.value)


def test_the_documented_command_makes_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    command = f'echo "alice $(printf %s {ALICE} | sha256sum | cut -d" " -f1)  # a note" > {path}'
    subprocess.run(["bash", "-c", command], check=True, timeout=SECONDS)

    keys: ApiKeys = keys_recipe(path).read().value
    assert keys.tenant(f"Bearer {ALICE}") == "alice"
    with pytest.raises(Unauthenticated):
        keys.tenant(f"Bearer {BOB}")
