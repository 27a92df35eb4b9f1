"""Sessions in a store, over gRPC: what outlives the process, what it costs, what can go wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from support.calls import SECONDS, Stubs, connected, refusal_of, refused
from support.lone import LoneSession
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server, started
from support.stored import flip_a_bit, serving
from unrolled.v1.completion_pb2 import (
    DURABILITY_FSYNC,
    DURABILITY_MEMORY,
    DURABILITY_PROCESS_CRASH,
    CompleteRequest,
    CompleteResponse,
    ScoreRequest,
)
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    Session,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def turn(
    stubs: Stubs, session: str, prompt: str, drawn: int, request_id: str = ""
) -> CompleteResponse:
    request = CompleteRequest(
        session=session, prompt=prompt, max_tokens=drawn, request_id=request_id
    )
    return stubs.completions.Complete(request, timeout=SECONDS)


def described(stubs: Stubs, name: str) -> Session:
    return stubs.sessions.GetSession(GetSessionRequest(name=name), timeout=SECONDS).session


def listed(stubs: Stubs, size: int, model: str = "") -> list[Session]:
    """All pages of a listing, which have to be whole but for the last."""
    found: list[Session] = []
    token = ""
    while True:
        request = ListSessionsRequest(model=model, page_size=size, page_token=token)
        answer = stubs.sessions.ListSessions(request, timeout=SECONDS)
        found += answer.sessions
        token = answer.next_page_token
        if not token:
            return found
        assert len(answer.sessions) == size


@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_a_session_outlives_the_process_bit_for_bit(
    repository: Repository, store: Path, model: str
) -> None:
    lone = LoneSession(repository, model, 9)
    with serving(repository.path, store) as first:
        name = first.stubs.create(model, seed=9)
        lone.tell("abc")
        assert turn(first.stubs, name, "abc", 20).text == lone.draw(20)
        fork = first.stubs.sessions.ForkSession(ForkSessionRequest(name=name)).session.name
        before = described(first.stubs, name)
        first.kill()
    with serving(repository.path, store) as second:
        after = described(second.stubs, name)
        assert (after.position, after.seed, after.model) == (23, 9, before.model)
        assert after.create_time == before.create_time
        lone.tell("d")
        text = lone.draw(30)
        assert turn(second.stubs, name, "d", 30).text == text
        assert turn(second.stubs, fork, "d", 30).text == text


@pytest.mark.parametrize(
    ("flags", "level"),
    [((), DURABILITY_FSYNC), (("--store-sync", "normal"), DURABILITY_PROCESS_CRASH)],
)
def test_an_outcome_says_how_durable_it_is(
    repository: Repository, store: Path, flags: tuple[str, ...], level: int
) -> None:
    with serving(repository.path, store, *flags) as here:
        name = here.stubs.create("lstm")
        assert turn(here.stubs, name, "a", 1, "id").outcome.durability == level
        assert turn(here.stubs, name, "a", 1, "id").outcome.durability == level


def test_without_a_store_it_says_memory(stubs: Stubs) -> None:
    outcome = turn(stubs, stubs.create("lstm"), "a", 1).outcome
    assert outcome.durability == DURABILITY_MEMORY


def test_an_answer_on_record_outlives_the_process(repository: Repository, store: Path) -> None:
    with serving(repository.path, store) as first:
        name = first.stubs.create("lstm")
        answer = turn(first.stubs, name, "ab", 10, "one")
        first.kill()
    with serving(repository.path, store) as second:
        again = turn(second.stubs, name, "ab", 10, "one")
        assert again.outcome.replayed
        assert (again.text, again.token_ids) == (answer.text, answer.token_ids)
        assert second.stubs.position(name) == 12
        other = CompleteRequest(session=name, prompt="x", request_id="one")
        assert refused(second.stubs.completions.Complete, other).reason == "REQUEST_ID_REUSED"


def test_what_has_ended_does_not_come_back(repository: Repository, store: Path) -> None:
    with serving(repository.path, store) as first:
        deleted, kept = first.stubs.create("lstm"), first.stubs.create("lstm")
        first.stubs.sessions.DeleteSession(DeleteSessionRequest(name=deleted))
        short = CreateSessionRequest(model="lstm")
        short.idle_ttl.FromMilliseconds(1)
        expired = first.stubs.sessions.CreateSession(short).session.name
        first.kill()
    with serving(repository.path, store) as second:
        for gone in (deleted, expired):
            refusal = refused(second.stubs.sessions.GetSession, GetSessionRequest(name=gone))
            assert refusal.reason == "SESSION_NOT_FOUND"
        assert [session.name for session in listed(second.stubs, 10)] == [kept]
        second.metrics.wait_for("unrolled_sessions", 1, tier="store")
        stored = second.stubs.sessions.DeleteSession
        stored(DeleteSessionRequest(name=kept))
        assert refused(stored, DeleteSessionRequest(name=kept)).reason == "SESSION_NOT_FOUND"


def test_pages_are_of_memory_and_store(repository: Repository, store: Path) -> None:
    with serving(repository.path, store) as first:
        made = [first.stubs.create(model) for model in ("lstm", "gru") * 5]
        first.kill()
    with serving(repository.path, store) as second:
        turn(second.stubs, made[3], "a", 1)
        made.append(second.stubs.create("lstm"))
        for size in (1, 3, 11, 100):
            assert [session.name for session in listed(second.stubs, size)] == sorted(made)
        grus = [session.name for session in listed(second.stubs, 2, "gru/1")]
        assert grus == sorted(made[1:10:2])
        assert {session.name: session.position for session in listed(second.stubs, 4)}[made[3]] == 2
        bad = ListSessionsRequest(page_token="1")
        assert refused(second.stubs.sessions.ListSessions, bad).fields == ["page_token"]


def test_more_sessions_than_memory_may_hold(repository: Repository, store: Path) -> None:
    lone = [LoneSession(repository, "lstm", seed) for seed in range(12)]
    with serving(repository.path, store, "--max-sessions", "3") as here:
        names = [here.stubs.create("lstm", seed=seed) for seed in range(12)]
        for prompt in ("ab", "c", "d"):
            for name, expected in zip(names, lone, strict=True):
                expected.tell(prompt)
                assert turn(here.stubs, name, prompt, 7).text == expected.draw(7)
        assert here.metrics.value("unrolled_sessions", tier="memory") == 3
        assert here.metrics.value("unrolled_sessions", tier="store") == 9
        # Twelve that were made, and 36 turns of which none found its session in memory.
        assert here.metrics.value("unrolled_evictions_total", reason="capacity") == 12 + 36 - 3
        assert here.metrics.value("unrolled_commit_duration_seconds_count") == 36
        score = ScoreRequest(session=names[0], text="a")
        here.stubs.completions.Score(score, timeout=SECONDS)
        here.kill()
    with serving(repository.path, store, "--max-sessions", "1") as again:
        for name, expected in zip(names, lone, strict=True):
            assert turn(again.stubs, name, "", 5).text == expected.draw(5)


@pytest.mark.parametrize("column", ["facts", "body"])
def test_a_damaged_record_costs_its_session_alone(
    repository: Repository, store: Path, column: str
) -> None:
    with serving(repository.path, store) as first:
        names = [first.stubs.create("lstm") for _ in range(3)]
        for name in names:
            turn(first.stubs, name, "a", 5)
        assert first.server.terminate()[0] == 0
    flip_a_bit(store, names[1], column)
    with serving(repository.path, store) as second:
        for _ in range(2):
            request = CompleteRequest(session=names[1], prompt="a")
            refusal = refused(second.stubs.completions.Complete, request)
            assert (refusal.code, refusal.reason) == ("DATA_LOSS", "RECORD_CORRUPT")
            assert refusal.metadata == {"session": names[1]}
        for name in (names[0], names[2]):
            assert turn(second.stubs, name, "a", 1).outcome.position == 8
        assert second.metrics.value("unrolled_store_corrupt_records_total") == 1
        assert sorted(s.name for s in listed(second.stubs, 10)) == sorted((names[0], names[2]))
        second.stubs.sessions.DeleteSession(DeleteSessionRequest(name=names[1]))
        gone = refused(second.stubs.sessions.GetSession, GetSessionRequest(name=names[1]))
        assert gone.reason == "SESSION_NOT_FOUND"


def test_a_session_of_a_model_that_is_not_served_names_it(
    repository: Repository, store: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("gru", "rnn"):
        (models / name).symlink_to(repository.path / name)
    with serving(repository.path, store) as first:
        lost, kept = first.stubs.create("lstm"), first.stubs.create("gru")
        fingerprint = described(first.stubs, lost).fingerprint
        first.kill()
    with serving(models, store) as second:
        refusal = refused(second.stubs.sessions.GetSession, GetSessionRequest(name=lost))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "MODEL_NOT_SERVED")
        expected = {"session": lost, "model": "lstm/1", "fingerprint": fingerprint}
        assert refusal.metadata == expected
        turn(second.stubs, kept, "a", 0)
        for model in ("lstm", "lstm/1"):
            assert [session.name for session in listed(second.stubs, 10, model)] == [lost]
        # It takes room, and whoever looks at the metrics is to know of it.
        stored = {
            model: second.metrics.value("unrolled_sessions", model=model, tier="store")
            for model in ("lstm/1", "gru/1", "rnn/1")
        }
        assert stored == {"lstm/1": 1, "gru/1": 0, "rnn/1": 0}
        assert second.metrics.value("unrolled_sessions") == 2
        second.stubs.sessions.DeleteSession(DeleteSessionRequest(name=lost))
        unknown = refused(second.stubs.sessions.ListSessions, ListSessionsRequest(model="lstm"))
        assert unknown.reason == "MODEL_NOT_FOUND"
        gone = refused(second.stubs.sessions.GetSession, GetSessionRequest(name=lost))
        assert gone.reason == "SESSION_NOT_FOUND"


def test_one_server_has_a_store_to_itself(repository: Repository, store: Path) -> None:
    with serving(repository.path, store) as here:
        flags = ("--models", str(repository.path), "--store", f"sqlite:{store}", "--port", "0")
        second = subprocess.run(
            [sys.executable, "-m", "unrolled_server", *flags, "--metrics-port", "0"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert second.returncode == 1
        assert f"--store sqlite:{store}: another process has it open" in second.stderr
        here.stubs.create("lstm")


def test_a_file_of_something_else_is_refused_and_left_alone(
    repository: Repository, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database\n" * 100)
    flags = ("--models", str(repository.path), "--store", f"sqlite:{text}")
    ended = subprocess.run(
        [sys.executable, "-m", "unrolled_server", *flags, "--port", "0", "--metrics-port", "0"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 1
    assert re.search(r"--store sqlite:\S*notes.txt: .*not a database", ended.stderr)
    assert text.read_text() == "no database\n" * 100


# Failures of the store


@pytest.mark.parametrize(
    "place", ["commit.before_write", "store.before_write", "store.before_commit"]
)
def test_a_turn_whose_commit_failed_has_not_advanced(
    repository: Repository, store: Path, place: str
) -> None:
    lone = LoneSession(repository, "lstm", 3)
    with serving(repository.path, store, failpoints=f"{place}=error:2") as here:
        name = here.stubs.create("lstm", seed=3)
        lone.tell("ab")
        assert turn(here.stubs, name, "ab", 4).text == lone.draw(4)
        request = CompleteRequest(session=name, prompt="c", max_tokens=4, request_id="x")
        refusal = refused(here.stubs.completions.Complete, request)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert refusal.retry_after == 1.0
        assert here.stubs.position(name) == 6
        lone.tell("c")
        answer = here.stubs.completions.Complete(request, timeout=SECONDS)
        assert (answer.text, answer.outcome.replayed) == (lone.draw(4), False)


# A small disk


def can_mount() -> bool:
    """Whether this user may have file systems of their own."""
    command = ["unshare", "--map-root-user", "--mount", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


IN_A_SMALL_DISK = """
mount -t tmpfs -o size=10m none "$1" || exit 3
dd if=/dev/zero of="$1/ballast" bs=1k count=1600 2>/dev/null
shift
exec 3<&0
(read -r _ <&3 && rm -f "$0/ballast" && echo room >&2) &
exec "$@"
"""


@pytest.mark.skipif(not can_mount(), reason="this user may not mount")
def test_a_full_disk_refuses_and_loses_nothing(repository: Repository, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    lone = LoneSession(repository, "lstm", 1)
    command = [
        *("unshare", "--map-root-user", "--mount", "bash", "-c", IN_A_SMALL_DISK, str(disk)),
        *(str(disk), sys.executable, "-m", "unrolled_server", "--models", str(repository.path)),
        *("--port", "0", "--metrics-port", "0", "--store", f"sqlite:{disk}/sessions.db"),
    ]
    with started(command, stdin=subprocess.PIPE) as server, connected(server.address) as stubs:
        name = stubs.create("lstm", seed=1)
        lone.tell("ab")
        assert turn(stubs, name, "ab", 5).text == lone.draw(5)
        made: list[str] = []
        create = CreateSessionRequest(model="lstm")
        refusal = None
        while refusal is None:
            try:
                made.append(stubs.sessions.CreateSession(create, timeout=SECONDS).session.name)
                turn(stubs, made[-1], "a", 1)
            except grpc.RpcError as error:
                refusal = refusal_of(error)
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "STORE_FULL")
        value = Metrics(server.metrics_url).value
        assert value("unrolled_store_errors_total", kind="full") == 1
        assert value("unrolled_store_errors_total") == 1
        assert value("unrolled_store_volume_bytes") == 10 << 20
        # What is not free is the ballast's and the store's, each file in whole pages.
        taken = value("unrolled_store_size_bytes") + value("unrolled_store_free_bytes")
        assert 0 <= (10 << 20) - (1600 << 10) - taken < 2 * 4096
        assert described(stubs, name).position == 7
        assert described(stubs, made[0]).position == 2
        # There is room left for ending sessions.
        gone = DeleteSessionRequest(name=made.pop())
        stubs.sessions.DeleteSession(gone, timeout=SECONDS)
        assert server.process.stdin is not None
        server.process.stdin.write("make room\n")
        server.process.stdin.flush()
        wait_for_line(server, "room")
        lone.tell("c")
        assert turn(stubs, name, "c", 5).text == lone.draw(5)
        assert stubs.create("lstm")


def wait_for_line(server: RunningServer, wanted: str) -> None:
    """Read the log up to a line."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if line.strip() == wanted:
            return
    raise AssertionError(f"the server ended without {wanted}")


# Where the file is


def test_without_flags_sessions_are_kept_where_the_user_keeps_state(
    repository: Repository, tmp_path: Path
) -> None:
    environment = {"UNROLLED_STORE": "", "XDG_STATE_HOME": str(tmp_path / "state")}
    with (
        running_server(repository.path, environment=environment) as server,
        connected(server.address) as stubs,
    ):
        name = stubs.create("lstm")
        outcome = turn(stubs, name, "a", 2).outcome
        assert outcome.durability == DURABILITY_FSYNC
    folder = tmp_path / "state/unrolled"
    assert folder.stat().st_mode & 0o777 == 0o700
    with serving(repository.path, folder / "sessions.db") as again:
        assert turn(again.stubs, name, "b", 0).outcome.position == outcome.position + 1


def test_the_file_is_in_the_data_folder(repository: Repository, tmp_path: Path) -> None:
    flags = ("--store", "sqlite", "--data-dir", str(tmp_path / "data"))
    with running_server(repository.path, *flags):
        assert (tmp_path / "data/sessions.db").is_file()


def test_a_data_folder_that_cannot_be_made_is_one_line(
    repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    flags = ("--store", "sqlite", "--data-dir", str(tmp_path / "file/data"))
    ended = subprocess.run(
        [sys.executable, "-m", "unrolled_server", "--models", repository.path, *flags],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()[-1:]
    assert f"{tmp_path}/file/data: Not a directory" in line
    assert "--data-dir" in line
