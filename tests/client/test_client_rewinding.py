"""Going back, with the clients and the command line, on a real server."""

from __future__ import annotations

import json

import pytest
import unrolled
from client.command import run
from support.lone import LoneSession
from support.models import Repository
from support.server import RunningServer
from unrolled.v1.completion_pb2 import ConverseResponse

SEED = 3


@pytest.fixture
def lone(repository: Repository) -> LoneSession:
    return LoneSession(repository, "lstm", SEED)


def test_a_session_goes_back(server: RunningServer, lone: LoneSession) -> None:
    lone.tell("ab")
    first, second = lone.draw(5), lone.draw(9)
    with (
        unrolled.Client(server.address) as client,
        client.create_session("lstm", seed=SEED, undo=True) as session,
    ):
        assert session.complete("ab", max_tokens=5).text == first
        session.checkpoint("here", expected_position=7)
        assert [place.id for place in session.info.checkpoints] == ["here"]
        assert session.complete(max_tokens=9).text == second
        session.rewind()
        assert session.position == 7
        with pytest.raises(unrolled.FailedPrecondition) as caught:
            session.rewind()
        assert caught.value.reason == "NOTHING_TO_UNDO"
        assert session.complete(max_tokens=9).text == second
        session.rewind("here", expected_position=16)
        assert session.position == 7
        session.delete_checkpoint("here")
        assert not session.info.checkpoints
        with pytest.raises(unrolled.NotFound):
            session.rewind("here")
        with pytest.raises(ValueError, match="None takes the last turn back"):
            session.rewind("")


async def test_a_session_of_asyncio_goes_back(server: RunningServer, lone: LoneSession) -> None:
    lone.tell("ab")
    first, second = lone.draw(5), lone.draw(9)
    async with (
        unrolled.AsyncClient(server.address) as client,
        client.create_session("lstm", seed=SEED, undo=True) as session,
    ):
        assert (await session.complete("ab", max_tokens=5)).text == first
        await session.checkpoint("here")
        for checkpoint in (None, "here"):
            assert (await session.complete(max_tokens=9)).text == second
            await session.rewind(checkpoint, expected_position=16)
            assert session.position == 7
        await session.delete_checkpoint("here")
        assert not session.info.checkpoints


def texts(events: list[ConverseResponse], *commands: str) -> list[str]:
    return [
        "".join(event.delta.text for event in events if event.command_id == command)
        for command in commands
    ]


def test_a_conversation_goes_back(server: RunningServer, lone: LoneSession) -> None:
    lone.tell("ab")
    text = lone.draw(5)
    with unrolled.Client(server.address) as client, client.converse() as talk:
        talk.open("lstm", seed=SEED, undo=True)
        talk.checkpoint("start", expected_position=0)
        one = talk.complete("ab", max_tokens=5)
        talk.rewind()
        two = talk.complete("ab", max_tokens=5)
        talk.rewind("start", expected_position=7)
        three = talk.complete("ab", max_tokens=5)
        talk.close()
        assert texts(list(talk), one, two, three) == [text] * 3
        with pytest.raises(ValueError, match="None takes the last turn back"):
            talk.rewind("")


async def test_a_conversation_of_asyncio_goes_back(
    server: RunningServer, lone: LoneSession
) -> None:
    lone.tell("ab")
    text = lone.draw(5)
    async with unrolled.AsyncClient(server.address) as client, client.converse() as talk:
        await talk.open("lstm", seed=SEED, undo=True)
        await talk.checkpoint("start")
        one = await talk.complete("ab", max_tokens=5)
        await talk.rewind()
        two = await talk.complete("ab", max_tokens=5)
        await talk.rewind("start")
        three = await talk.complete("ab", max_tokens=5)
        await talk.close()
        assert texts([event async for event in talk], one, two, three) == [text] * 3


def test_the_command_line_goes_back(server: RunningServer) -> None:
    def sessions(*arguments: str) -> str:
        done = run("--server", server.address, "sessions", *arguments)
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout.strip()

    name = sessions("create", "--model", "lstm", "--undo", "--max-age", "90")
    with unrolled.Client(server.address) as client:
        client.session(name).feed("abc")
        assert sessions("checkpoint", name, "here") == "position 3"
        client.session(name).feed("ab")
    shown = sessions("show", name).splitlines()
    assert [line.split()[0] for line in shown[-4:-2]] == ["expires", "ends"]
    assert shown[-4].split()[1:] == shown[-3].split()[1:]
    assert shown[-2:] == ["checkpoint   here at 3 tokens", "undo         to 3 tokens"]
    assert sessions("rewind", name) == "position 3"
    assert sessions("show", name).splitlines()[-1] == "undo         no turn to take back"
    assert json.loads(sessions("rewind", "--json", name, "here"))["position"] == "3"
    assert sessions("checkpoint", name, "here", "--delete") == "position 3"
    assert "checkpoint" not in sessions("show", name)
    refused = run("--server", server.address, "sessions", "rewind", name)
    assert "no turn to take back" in refused.stderr
    assert refused.returncode != 0
    sessions("delete", name)


def test_a_chat_goes_back(server: RunningServer) -> None:
    chat = ("chat", "--model", "lstm", "--seed", "3", "--max-tokens", "4", "--delete")
    told = b"a\n/undo\na\n/checkpoint here\nb\n/rewind here\nb\n"
    done = run("--server", server.address, *chat, told=told)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    one, undone, again, named, two, rewound, at_last = done.stdout.splitlines()
    assert (one, two) == (again, at_last)
    assert undone.endswith("position 0")
    assert named == "here is position 6"
    assert rewound.endswith("position 6")


@pytest.mark.parametrize(("line", "takes"), [("/checkpoint", "a name"), ("/rewind", "/undo")])
def test_a_chat_says_what_a_command_takes(server: RunningServer, line: str, takes: str) -> None:
    done = run("--server", server.address, "chat", "--model", "lstm", told=f"{line}\n".encode())
    assert done.returncode == 2
    assert takes in done.stderr.splitlines()[-1]
