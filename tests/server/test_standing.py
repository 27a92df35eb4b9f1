"""Turns, checkpoints and rewinds of one session, against the history that each leads to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from unrolled_server import checkpoints
from unrolled_server.answers import Answer, find
from unrolled_server.checkpoints import LAST_TURN, MAX_CHECKPOINTS, Checkpoint, Checkpoints
from unrolled_server.errors import CheckpointNotFound, NothingToUndo, TooManyCheckpoints
from unrolled_server.standing import Standing
from unrolled_server.types import CheckpointView, Past, RequestKey

IDS = "abc"


@dataclass(frozen=True)
class Point:
    """How a session came to where it stands: its turns, each by a number that no other has."""

    turns: tuple[int, ...] = ()
    position: int = 0


@dataclass
class History:
    """A session as it has to be."""

    now: Point = field(default_factory=Point)
    before: Point | None = None
    named: dict[str, Point] = field(default_factory=dict)
    record: list[int] = field(default_factory=list)
    """Turns whose answers are kept, the oldest first."""


def key(turn: int) -> RequestKey:
    return RequestKey(str(turn), bytes(32))


def at(past: Point) -> Past:
    """A place that tells its past; without any it is the zero state."""
    if not past.turns:
        return Past(None, None, 0)
    numbers = np.array([past.turns[-1], past.position], np.float32)
    return Past(numbers, past.turns[-1], past.position, b"\xc3", past.position)


def same(one: Past, other: Past) -> bool:
    bits = [None if past.state is None else past.state.tobytes() for past in (one, other)]
    facts = [(past.pending, past.position, past.partial, past.previous) for past in (one, other)]
    return bits[0] == bits[1] and facts[0] == facts[1]


class StandingMachine(RuleBasedStateMachine):
    """Moves a Standing; `history` follows along."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self.history = History()
        none = checkpoints.encode(Checkpoints(undo=True))
        self.standing = Standing("s", at(Point()), checkpoints=none)

    def move(self, standing: Standing) -> None:
        """What a store compares before it replaces a record has to be later for each."""
        old, new = [(each.era, each.past.position) for each in (self.standing, standing)]
        assert new > old
        self.standing = standing

    @rule(tokens=st.integers(0, 3), named=st.booleans())
    def turn(self, tokens: int, named: bool) -> None:
        self.turns += 1
        past = self.history.now
        self.history.before = past
        after = Point((*past.turns, self.turns), past.position + tokens)
        self.history.now = after
        answer = Answer(key(self.turns), outcome=b"o") if named else None
        if named:
            self.history.record = [*self.history.record, self.turns][-4:]
        self.move(self.standing.after_turn(at(after), answer))

    @rule(id_=st.sampled_from(IDS))
    def mark(self, id_: str) -> None:
        self.history.named[id_] = self.history.now
        self.move(self.standing.with_checkpoint(id_))

    @rule(id_=st.sampled_from(IDS))
    def unmark(self, id_: str) -> None:
        if self.history.named.pop(id_, None) is None:
            with pytest.raises(CheckpointNotFound):
                self.standing.without_checkpoint(id_)
        else:
            self.move(self.standing.without_checkpoint(id_))

    @rule(id_=st.sampled_from([LAST_TURN, *IDS]))
    def rewind(self, id_: str) -> None:
        past = self.history.named.get(id_) if id_ else self.history.before
        if past is None:
            with pytest.raises(CheckpointNotFound if id_ else NothingToUndo):
                self.standing.rewound(id_)
            return
        self.history.now, self.history.before = past, None
        self.history.record = [turn for turn in self.history.record if turn in past.turns]
        self.move(self.standing.rewound(id_))

    @invariant()
    def it_stands_where_it_has_to(self) -> None:
        assert same(self.standing.past, at(self.history.now))

    @invariant()
    def only_turns_that_stand_are_answered_again(self) -> None:
        answered = [t for t in range(1, self.turns + 1) if find(self.standing.answers, key(t))]
        assert answered == self.history.record

    @invariant()
    def it_can_go_where_it_has_to(self) -> None:
        before = self.history.before
        wanted = {} if before is None else {LAST_TURN: before}
        wanted |= {id_: self.history.named[id_] for id_ in sorted(self.history.named)}
        kept = checkpoints.decode(self.standing.checkpoints)
        assert kept.undo
        assert kept.views == tuple(
            CheckpointView(id_, past.position) for id_, past in wanted.items()
        )
        for each in kept.all:
            assert same(each.past, at(wanted[each.id]))


def test_a_session_goes_back_to_where_it_stood() -> None:
    StandingMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
    StandingMachine.TestCase("runTest").runTest()


def test_a_session_that_is_not_asked_to_keeps_nothing() -> None:
    standing = Standing("s", at(Point()))
    for turn in range(3):
        standing = standing.after_turn(at(Point((turn,), turn + 1)), None)
    assert standing.checkpoints == b""
    with pytest.raises(NothingToUndo):
        standing.rewound(LAST_TURN)
    assert standing.with_checkpoint("a").without_checkpoint("a").checkpoints == b""


def test_there_is_room_for_so_many_and_for_the_last_turn() -> None:
    standing = Standing("s", at(Point()), checkpoints=checkpoints.encode(Checkpoints(undo=True)))
    for number in range(MAX_CHECKPOINTS):
        standing = standing.with_checkpoint(f"c{number}")
        standing = standing.after_turn(at(Point((number,), number + 1)), None)
    with pytest.raises(TooManyCheckpoints) as caught:
        standing.with_checkpoint("more")
    assert caught.value.metadata == {"session": "s", "limit": "16"}
    moved = standing.with_checkpoint("c3")
    assert CheckpointView("c3", 16) in checkpoints.decode(moved.checkpoints).views
    moved = moved.without_checkpoint("c1").with_checkpoint("more")
    assert len(checkpoints.decode(moved.checkpoints).all) == 17


pasts = st.builds(
    Past,
    st.none()
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9).map(
        lambda numbers: np.array(numbers, np.float32)
    ),
    st.none() | st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=3),
    st.none() | st.integers(0, 2**31 - 1),
)
many_marks = st.lists(
    st.builds(Checkpoint, st.text("aZ0._-", max_size=63), st.integers(0, 2**64 - 1), pasts),
    max_size=MAX_CHECKPOINTS + 1,
    unique_by=lambda each: each.id,
)


@given(st.booleans(), many_marks)
def test_checkpoints_are_read_as_they_were_written(undo: bool, written: list[Checkpoint]) -> None:
    read = checkpoints.decode(checkpoints.encode(Checkpoints(undo, tuple(written))))
    assert read.undo == undo
    assert [(one.id, one.era) for one in read.all] == [(one.id, one.era) for one in written]
    assert all(same(one.past, other.past) for one, other in zip(read.all, written, strict=True))
