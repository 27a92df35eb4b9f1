"""The engine: one thread that advances every turn of one model, a step at a time.

The row is the unit, the step is the clock (cellular batching: Gao et al., Low Latency RNN
Inference with Cellular Batching, EuroSys 2018): rows join and leave between runs, and a run
advances all of them, whether they are told their tokens or draw them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from unrolled_server.logs import log_event
from unrolled_server.row import Row
from unrolled_server.runner import Runner
from unrolled_server.scheduler import Scheduler
from unrolled_server.stats import EngineStats
from unrolled_server.turn import Turn
from unrolled_server.types import Delta, Ending, Floats, Tokens
from unrolled_server.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Message = tuple[Turn, Delta | Ending | Exception]


class EngineFailure(Exception):
    """A run failed; the turn it was part of is lost, what it started from is not."""


@dataclass(frozen=True)
class Delivery:
    """When the tokens that a row has drawn leave for the front; its first leave at once."""

    tokens: int = 16
    seconds: float = 0.02


class Engine:
    """Owns the rows of one model.

    Other threads call `start`, `submit`, `nudge` and `close`; the rest is the engine's thread's.
    Messages reach their turns in the event loop, all those of a step with one wake-up.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        vocabulary: Vocabulary,
        capacity: int,
        delivery: Delivery,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stats = EngineStats()
        self._name = name
        self._runner = runner
        self._vocabulary = vocabulary
        self._scheduler = Scheduler(capacity)
        self._delivery = delivery
        self._loop = loop
        self._clock = clock
        self._mail: SimpleQueue[Turn | None] = SimpleQueue()
        self._outbox: list[Message] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, turn: Turn) -> None:
        """Hand a turn over, from any thread."""
        self._mail.put(turn)

    def nudge(self) -> None:
        """Have the flags of turns looked at, from any thread."""
        self._mail.put(None)

    def close(self) -> None:
        """End the thread; turns under way get no more messages."""
        self._closing = True
        self.nudge()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._read_mail()
            self.step()

    def step(self) -> None:
        """Choose rows, run, commit, deliver."""
        started = self._clock()
        try:
            self._choose()
            if self._scheduler.active:
                steps = self._scheduler.steps()
                self._write_inputs(steps)
                before_run = self._clock()
                tokens, logprobs = self._runner.run(len(self._scheduler.active), steps)
                after_run = self._clock()
                self.stats.batch.observe(len(self._scheduler.active))
                self._commit(tokens, logprobs, after_run)
                self._measure(started, before_run, after_run)
        except Exception:
            logger.exception("run_failed")
            self._fail_all()
        self._count_rows()
        self._deliver()

    # choose

    def _read_mail(self) -> None:
        """Take what has come; waits only where there is nothing else to do."""
        scheduler = self._scheduler
        wait = not scheduler.active and not scheduler.waiting
        nudged = False
        while True:
            try:
                turn = self._mail.get(block=wait)
            except Empty:
                break
            wait = False
            if turn is not None:
                self._admit(turn)
            nudged = nudged or turn is None
        if nudged:
            scheduler.drop_cancelled()

    def _admit(self, turn: Turn) -> None:
        try:
            self._scheduler.add(Row(turn, self._vocabulary))
        except Exception:
            logger.exception("turn_refused")
            self._outbox.append((turn, EngineFailure("the turn could not begin")))

    def _choose(self) -> None:
        """Settle who takes part in the next run."""
        scheduler = self._scheduler
        for place in reversed(range(len(scheduler.active))):
            self._settle(place)
        scheduler.unpark()
        while (row := scheduler.next_joining()) is not None:
            self._join(row)
        active = scheduler.active
        self._runner.filtered[...] = any(row.turn.task.sampling.filters for row in active)

    def _join(self, row: Row) -> None:
        """Give a row the last place, unless it has nothing to do."""
        place = len(self._scheduler.active) - 1
        sampling, runner = row.turn.task.sampling, self._runner
        runner.load(place, row.state)
        runner.pending[place] = row.pending
        runner.temperature[place] = sampling.temperature
        runner.top_k[place] = sampling.top_k
        runner.top_p[place] = sampling.top_p
        runner.min_p[place] = sampling.min_p
        self._settle(place)

    def _settle(self, place: int) -> None:
        """Take a row out of the batch where its turn is over or its reader behind."""
        row = self._scheduler.active[place]
        if row.turn.cancelled:
            self._leave(place)
            return
        if row.turn.stopping:
            row.stop()
        if row.steps_left == 0:
            self._finish(place)
        elif self._scheduler.is_behind(row):
            row.state = self._runner.save(place)
            self._leave(place)
            self._scheduler.park(row)

    def _leave(self, place: int) -> None:
        last = self._scheduler.leave(place)
        if last != place:
            self._runner.move(last, place)

    def _finish(self, place: int) -> None:
        """Send a row's last messages and free its place."""
        row = self._scheduler.active[place]
        state = self._runner.save(place)
        before = row.flushed
        now = self._clock()
        delta, ending = row.finish(state, now)
        if delta is not None:
            self._send(row, delta, before, now)
        self._outbox.append((row.turn, ending))
        if row.turn.task.scores:
            self.stats.scored_tokens += ending.told
        else:
            self.stats.prompt_tokens += ending.told
        self._leave(place)

    def _count_rows(self) -> None:
        scheduler, stats = self._scheduler, self.stats
        stats.active = len(scheduler.active)
        stats.waiting = len(scheduler.waiting)
        stats.parked = len(scheduler.parked)

    # run

    def _write_inputs(self, steps: int) -> None:
        rows = self._scheduler.active
        told = self._runner.told(len(rows), steps)
        told.fill(-1)
        random = self._runner.uniforms(len(rows), steps)
        for place, row in enumerate(rows):
            row.write_inputs(told[:, place], random[:, place])

    # commit

    def _commit(self, tokens: Tokens, logprobs: Floats, now: float) -> None:
        """Give every row the tokens of the run; rows that ended inside it go back."""
        columns = tokens.T.tolist()
        for place, row in enumerate(self._scheduler.active):
            fed = row.pending
            if row.advance(columns[place], logprobs[:, place]):
                self._runner.rewind(place, fed)
                row.pending = fed
            if row.due(now, self._delivery.tokens, self._delivery.seconds):
                before = row.flushed
                delta = row.flush(now)
                if delta is not None:
                    self._send(row, delta, before, now)
        overflowed = set(np.nonzero(np.isnan(logprobs[:, :, 0]))[1].tolist())
        for place in reversed(range(len(self._scheduler.active))):
            if place in overflowed:
                self._fail(place)
            elif self._scheduler.active[place].steps_left == 0:
                self._finish(place)

    def _fail(self, place: int) -> None:
        """A row's state has left the range of float32, as that of a ReLU network can."""
        row = self._scheduler.active[place]
        log_event(logger, logging.ERROR, "state_overflow", model=self._name)
        self._outbox.append((row.turn, EngineFailure("the state is not finite any more")))
        self._leave(place)

    def _send(self, row: Row, delta: Delta, before: float | None, now: float) -> None:
        self._outbox.append((row.turn, delta))
        count = len(delta.token_ids)
        if row.turn.task.scores or not count:
            return
        self.stats.generated_tokens += count
        if before is None:
            self.stats.first_token.observe(now - row.turn.created)
        else:
            self.stats.inter_token.observe((now - before) / count, count)

    def _measure(self, started: float, before_run: float, after_run: float) -> None:
        parts = self.stats.parts
        host = before_run - started + self._clock() - after_run
        parts["host"].observe(host)
        parts["run"].observe(after_run - before_run)

    def _fail_all(self) -> None:
        """A run failed: no row's state is sound any more."""
        self.stats.failures += 1
        for row in self._scheduler.active:
            self._outbox.append((row.turn, EngineFailure("a run failed")))
        self._scheduler.active.clear()

    # deliver

    def _deliver(self) -> None:
        """Hand all messages of the step to the event loop, with one wake-up."""
        if not self._outbox:
            return
        messages, self._outbox = self._outbox, []
        started = self._clock()
        try:
            self._loop.call_soon_threadsafe(_receive, messages)
        except RuntimeError:
            # The loop is closed: the server is past its end, and nobody waits.
            self._closing = True
        self.stats.parts["delivery"].observe(self._clock() - started)


def _receive(messages: list[Message]) -> None:
    for turn, message in messages:
        turn.receive(message)
