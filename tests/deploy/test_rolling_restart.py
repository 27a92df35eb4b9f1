"""Three servers on one Redis behind a real Envoy: sessions go on while servers come and go."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest
import unrolled
from support.calls import SECONDS
from support.envoy import Envoy, running_envoy
from support.metrics import eventually
from support.models import Repository
from support.redis import running_redis
from support.server import RunningServer, running_server
from unrolled import CompletionOptions
from unrolled.v1.completion_pb2 import Outcome

HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
"""Nothing else of this machine uses these, so a server that comes again finds its port free."""
LONGEST = 30
"""Tokens of a turn at most."""


class Cluster:
    """Servers that share a store, each with an address of its own, and Envoy before them."""

    def __init__(self, repository: Repository, store: str, stack: ExitStack) -> None:
        self._models = repository.path
        self._store = store
        self._stack = stack
        self.servers = [self._start(host, "0") for host in HOSTS]
        addresses = [server.address for server in self.servers]
        self.envoy: Envoy = stack.enter_context(running_envoy(addresses))
        self.envoy.wait_for_healthy(len(HOSTS))

    def replace(self, number: int) -> None:
        """Tell a server to end, and start another at its address."""
        status, _ = self.servers[number].terminate()
        assert status == 0
        self.come_back(number)

    def kill(self, number: int) -> None:
        """End a server at once."""
        self.servers[number].process.kill()
        self.servers[number].process.wait()

    def come_back(self, number: int) -> None:
        """Start a server in place of one that has ended."""
        host, _, port = self.servers[number].address.rpartition(":")
        self.servers[number] = self._start(host, port)
        self.envoy.wait_for_healthy(len(HOSTS))

    def _start(self, host: str, port: str) -> RunningServer:
        # A machine that is busy with other tests is not a store that hangs.
        patience = ("--store-timeout", f"{SECONDS:g}s")
        flags = ("--store", self._store, *patience, "--host", host, "--port", port)
        return self._stack.enter_context(running_server(self._models, *flags))


@pytest.fixture(scope="module")
def cluster(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis")))
        yield Cluster(repository, redis.url, stack)


class Player:
    """A session that somebody goes on with, turn after turn, and what was acknowledged."""

    def __init__(self, client: unrolled.Client, seed: int) -> None:
        self.client = client
        self.seed = seed
        self.session = client.create_session("lstm", seed=seed)
        self.text = ""
        self.turns = 0
        self.broken = 0
        """Attempts of turns that failed."""
        self._sizes = random.Random(seed)

    def play(self, until: threading.Event) -> None:
        """Have turns until told to stop."""
        while not until.is_set():
            self._play_turn(self._sizes.randint(1, LONGEST))

    def attempt(self, options: CompletionOptions) -> tuple[str, Outcome]:
        """Ask for one turn. Raises Unavailable, Cancelled."""
        answer = self.client.complete(session=self.session.name, timeout=SECONDS, **options)
        return answer.text, answer.outcome

    def _play_turn(self, size: int) -> None:
        before = len(self.text)
        options = CompletionOptions(
            max_tokens=size, request_id=uuid.uuid4().hex, expected_position=before
        )
        while True:
            try:
                text, outcome = self.attempt(options)
                break
            except (unrolled.Unavailable, unrolled.Cancelled):
                self.broken += 1
        assert (len(text), outcome.position) == (size, before + size)
        self.text += text
        self.turns += 1


class StreamPlayer(Player):
    """One that has its turns streamed."""

    def attempt(self, options: CompletionOptions) -> tuple[str, Outcome]:
        stream = self.client.stream(session=self.session.name, timeout=SECONDS, **options)
        text = "".join(delta.text for delta in stream)
        return text, stream.outcome


class ConversationPlayer(Player):
    """One that has its turns within a conversation, and begins another when that ends."""

    _conversation: unrolled.Conversation | None = None

    def attempt(self, options: CompletionOptions) -> tuple[str, Outcome]:
        if self._conversation is None:
            self._conversation = self.client.converse(session=self.session.name)
            self._conversation.open(session=self.session.name)
        try:
            return self._turn_of(self._conversation, options)
        except (unrolled.Unavailable, unrolled.Cancelled):
            self._conversation = None
            raise

    def _turn_of(
        self, conversation: unrolled.Conversation, options: CompletionOptions
    ) -> tuple[str, Outcome]:
        text = ""
        with suppress(RuntimeError):
            # It may have ended since; iterating says why.
            conversation.complete(**options)
        for event in conversation:
            if event.HasField("error"):
                raise unrolled.error_from_status(event.error)
            text += event.delta.text
            if event.HasField("outcome"):
                return text, event.outcome
        raise AssertionError("the conversation has ended without a status")


@contextmanager
def playing(players: Sequence[Player]) -> Iterator[Callable[[], None]]:
    """All of them play until the end. What is yielded returns once each has had more turns."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(players)) as pool:
        played = [pool.submit(player.play, stop) for player in players]

        def go_on() -> None:
            goals = [player.turns + 3 for player in players]
            eventually(
                lambda: (
                    any(each.done() for each in played)
                    or all(each.turns >= goal for each, goal in zip(players, goals, strict=True))
                ),
                "three more turns of everybody",
            )
            for each in played:
                if each.done():
                    each.result()

        try:
            yield go_on
        finally:
            stop.set()
        for each in played:
            each.result()


def check(players: Sequence[Player], client: unrolled.Client, repository: Repository) -> None:
    """Every acknowledged turn is there, once, as if nothing had ever ended."""
    for player in players:
        assert client.session(player.session.name).position == len(player.text)
    with (
        running_server(repository.path, "--store", "memory") as lone,
        unrolled.Client(lone.address) as other,
    ):
        for player in players:
            session = other.create_session("lstm", seed=player.seed)
            assert session.complete(max_tokens=len(player.text)).text == player.text


def test_servers_are_replaced_one_by_one_and_no_turn_is_lost_or_doubled(
    repository: Repository, cluster: Cluster
) -> None:
    with unrolled.Client(cluster.envoy.address) as client:
        kinds = [Player] * 3 + [StreamPlayer] * 3 + [ConversationPlayer] * 2
        players = [kind(client, seed) for seed, kind in enumerate(kinds)]
        with playing(players) as go_on:
            go_on()
            for number in range(len(HOSTS)):
                cluster.replace(number)
                go_on()
        # A conversation stays where it began until that server ends; then its session moves.
        conversations = [each for each in players if isinstance(each, ConversationPlayer)]
        assert all(each.broken for each in conversations)
        assert not any(each.broken for each in players if each not in conversations)
        check(players, client, repository)


def test_sessions_of_a_server_that_dies_go_on_elsewhere(
    repository: Repository, cluster: Cluster
) -> None:
    with unrolled.Client(cluster.envoy.address) as client:
        kinds = [Player] * 4 + [StreamPlayer] * 2 + [ConversationPlayer] * 2
        players = [kind(client, seed) for seed, kind in enumerate(kinds)]
        with playing(players) as go_on:
            go_on()
            cluster.kill(0)
            go_on()
        check(players, client, repository)
    cluster.come_back(0)
