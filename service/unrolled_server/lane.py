"""A lane of an engine: one thread that advances its rows, a step at a time.

The row is the unit, the step is the clock (cellular batching: Gao et al., Low Latency RNN
Inference with Cellular Batching, EuroSys 2018): rows join and leave between runs, and a run
advances all of them, whether they are told their tokens or draw them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

from unrolled_server.batch import WINDOW, Batch
from unrolled_server.delivery import Flushing, Outbox
from unrolled_server.logs import log_event
from unrolled_server.row import Row
from unrolled_server.running import AnyRunner
from unrolled_server.scheduler import Pace, Scheduler, Waiting
from unrolled_server.stats import EngineStats
from unrolled_server.telling import Telling
from unrolled_server.turn import EngineFailure, Turn
from unrolled_server.types import MAX_STEPS, Floats, Places, Prefix, Tokens
from unrolled_server.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class Lane:
    """Owns some rows of one model, as many as its runner has room for.

    Other threads call `start`, `submit`, `nudge`, `close` and `turns`; the rest is for its own.
    Messages reach their turns in the event loop, all those of a step with one wake-up.
    """

    def __init__(
        self,
        name: str,
        runner: AnyRunner,
        vocabulary: Vocabulary,
        flushing: Flushing,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.perf_counter,
        stats: EngineStats | None = None,
    ) -> None:
        """stats: where it counts; None: in new ones."""
        self.stats = EngineStats() if stats is None else stats
        self._name = name
        self._runner = runner
        self._vocabulary = vocabulary
        self._scheduler = Scheduler(runner.rows)
        ends = vocabulary.end_tokens
        self._batch = Batch(runner.rows, vocabulary.size, ends, flushing.tokens)
        # A run that took longer than tokens may wait would only make them late.
        self._pace = Pace(flushing.seconds, MAX_STEPS)
        self._telling = Telling(flushing.seconds)
        self._flushing = flushing
        self._clock = clock
        self._mail: SimpleQueue[Turn | None] = SimpleQueue()
        self._outbox = Outbox(self.stats, loop, clock)
        self._closing = False
        self._nudged = False
        self.siblings: Sequence[Lane] = (self,)
        """The lanes of its engine, which share the rate of messages and the turns that wait."""
        self._thread = threading.Thread(target=self._run, name=f"lane {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def turns(self) -> int:
        """Turns it has, as far as another thread can tell."""
        scheduler = self._scheduler
        return self._mail.qsize() + len(scheduler.active) + len(scheduler.waiting)

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
            if self._scheduler.is_idle and not any(self._elsewhere()):
                self._take_mail(self._mail.get())
            self.step()

    def step(self) -> None:
        """Choose rows, run, commit, deliver; does not wait for any."""
        started = self._clock()
        try:
            self._choose()
            places = self._telling.choose(self._batch, self._runner.prompt_rows)
            if places.size:
                self._tell(places, started)
            elif self._batch.size:
                self._advance(self._steps(), started)
        except Exception:
            logger.exception("run_failed")
            self._fail_all()
        self._count_rows()
        if not self._outbox.deliver():
            # The server is past its end, and nobody waits.
            self._closing = True

    def _tell(self, places: Places, started: float) -> None:
        """Advance these rows by tokens that are told, which nobody is to hear of."""
        steps, rows = self._telling.steps(self._batch, places), len(places)
        told = np.empty((steps, rows), np.int32)
        self._write_told(told, places)
        before_run = self._clock()
        try:
            self._runner.tell(told, places)
        except Exception:
            logger.exception("run_failed")
            self._fail_told(places)
            return
        after_run = self._clock()
        self._telling.observe(rows, self._batch.size - rows, steps, after_run - before_run)
        self._batch.tell(steps, places)
        marked = self._batch.at_marks()
        self._runner.fetch(marked)
        for place in marked:
            self._remember(place)
        self._measure(rows, started, before_run, after_run)

    def _advance(self, steps: int, started: float) -> None:
        """Advance all rows by tokens that are told or drawn."""
        rows = self._batch.size
        self._write_inputs(steps)
        fed = self._runner.pending[:rows].copy()
        before_run = self._clock()
        tokens, logprobs = self._runner.run(rows, steps)
        after_run = self._clock()
        self._pace.observe(rows, steps, after_run - before_run)
        self._telling.make_up(after_run - before_run)
        self._commit(tokens, logprobs, fed, after_run)
        self._measure(rows, started, before_run, after_run)

    # choose

    def _read_mail(self) -> None:
        """Take what has come."""
        # Nobody else takes any out.
        while not self._mail.empty():
            self._take_mail(self._mail.get())

    def _take_mail(self, turn: Turn | None) -> None:
        if turn is None:
            self._nudged = True
        else:
            self._admit(turn)

    def _admit(self, turn: Turn) -> None:
        try:
            self._scheduler.waiting.add(Row(turn, self._vocabulary))
        except Exception:
            logger.exception("turn_refused")
            self._outbox.put(turn, EngineFailure("the turn could not begin"))

    def _choose(self) -> None:
        """Settle who takes part in the next run."""
        self._read_mail()
        scheduler = self._scheduler
        if self._nudged:
            self._nudged = False
            scheduler.waiting.drop_cancelled()
            self._look_at_flags(range(self._batch.size))
        scheduler.unpark()
        elsewhere = self._elsewhere()
        while (row := scheduler.next_joining(elsewhere)) is not None:
            self._join(row)
        if scheduler.waiting:
            self._wake_idle()
        self._runner.filtered[...] = self._batch.filters()
        self._runner.wants_logprobs[...] = self._batch.wants_logprobs()

    def _elsewhere(self) -> list[Waiting]:
        """Where turns of the same model wait for a place in other lanes."""
        return [lane._scheduler.waiting for lane in self.siblings if lane is not self]

    def _wake_idle(self) -> None:
        """Have lanes that sleep for want of turns see that some wait here."""
        for lane in self.siblings:
            if not lane.turns:
                lane.nudge()

    def _join(self, row: Row) -> None:
        """Give a row the last place, unless it has nothing to do."""
        place = self._batch.join(row)
        sampling, runner = row.turn.task.sampling, self._runner
        runner.load(place, row.state)
        runner.pending[place] = row.pending
        runner.temperature[place] = sampling.temperature
        runner.top_k[place] = sampling.top_k
        runner.top_p[place] = sampling.top_p
        runner.min_p[place] = sampling.min_p
        if row.turn.joined is None:
            row.turn.joined = self._clock()
        self._look_at_flags(range(place, place + 1))

    def _look_at_flags(self, places: range) -> None:
        """Do what the front asks of rows; those that have nothing left to do leave."""
        batch = self._batch
        for place in reversed(places):
            row = self._scheduler.active[place]
            if row.turn.cancelled:
                self._leave(place)
                continue
            if row.turn.stopping and batch.draw_left[place]:
                row.stop()
                batch.stop(place)
            if batch.is_finished(place):
                self._finish(place)

    def _leave(self, place: int) -> None:
        self._scheduler.leave(place)
        self._batch.leave(place)
        if place != self._batch.size:
            self._runner.move(self._batch.size, place)

    def _finish(self, place: int) -> None:
        """Send a row's last messages and free its place."""
        row, now = self._scheduler.active[place], self._clock()
        row.take(self._batch.take(place), None)
        state, pending = self._runner.save(place), int(self._runner.pending[place])
        delta, ending = row.finish(state, pending, self._batch.position(place), now)
        if delta is not None:
            self._outbox.put_delta(row.turn, delta, now)
        self._outbox.put_ending(row.turn, ending)
        self._leave(place)

    def _park(self, place: int) -> None:
        """Keep a row whose reader is behind out of the batch."""
        row = self._scheduler.active[place]
        row.state, row.pending = self._runner.save(place), int(self._runner.pending[place])
        self._batch.put_back(place, row)
        self._leave(place)
        self._scheduler.park(row)

    def _count_rows(self) -> None:
        scheduler, stats = self._scheduler, self.stats
        stats.active = len(scheduler.active)
        stats.waiting = len(scheduler.waiting)
        stats.parked = len(scheduler.parked)

    # run

    def _steps(self) -> int:
        """Steps of the next run: no row ends inside it, but for the sake of its text."""
        rows = self._batch.size
        return min(self._pace.steps(rows), self._runner.most_steps(rows), self._batch.most_steps())

    def _write_inputs(self, steps: int) -> None:
        batch, runner = self._batch, self._runner
        runner.uniforms(batch.size, steps)[...] = batch.uniforms(steps)
        told = runner.told(batch.size, steps)
        told.fill(-1)
        if batch.may_tell():
            self._write_told(told, batch.all())

    def _write_told(self, told: Tokens, places: Places) -> None:
        """Write the tokens that rows are told in the next run, [K, B], -1 where one is drawn."""
        batch, active = self._batch, self._scheduler.active
        for place in batch.short(len(told), places):
            left = int(batch.tell_left[place])
            batch.hand(place, active[place].told(left, WINDOW))
        batch.write_told(told, places)

    # commit

    def _commit(self, tokens: Tokens, logprobs: Floats, fed: Tokens, now: float) -> None:
        """Give rows the tokens of the run; those that ended in it leave, some after going back."""
        batch, flushing = self._batch, self._flushing
        batch.advance(tokens)
        for place in batch.watched(tokens):
            self._take(place, tokens, logprobs, int(fed[place]), now)
        leaving = dict.fromkeys(batch.finished(), self._finish)
        overflows = np.isnan(logprobs[:, :, 0])
        overflowed = np.flatnonzero(overflows.any(0)).tolist() if overflows.any() else []
        leaving.update(dict.fromkeys(overflowed, self._fail))
        for place in batch.due(now, flushing.tokens, flushing.interval(self._company())):
            if place not in leaving and self._flush(place, now):
                leaving[place] = self._park
        marked = [place for place in batch.at_marks() if place not in overflowed]
        self._runner.fetch(sorted({*leaving, *marked}))
        for place in marked:
            self._remember(place)
        for place in sorted(leaving, reverse=True):
            leaving[place](place)

    def _remember(self, place: int) -> None:
        """Hand out a row's state, which is that after a part of its prompt."""
        row = self._scheduler.active[place]
        # All tokens but the newest, which is pending.
        prefix = Prefix(self._batch.position(place) - 1, self._runner.save(place))
        self._outbox.put(row.turn, prefix)
        self._batch.mark(place, row)

    def _take(self, place: int, tokens: Tokens, logprobs: Floats, fed: int, now: float) -> None:
        """Give a row its tokens of the run; it goes back if its text ended before the run did."""
        row, batch, steps = self._scheduler.active[place], self._batch, len(tokens)
        told = int(batch.told[place])
        if row.turn.task.scores:
            row.score(tokens[:told, place].tolist(), logprobs[:told, place])
            if row.has_scores:
                self._flush(place, now)
            return
        dropped = row.take(batch.take(place), logprobs[told:, place])
        if row.has_ended:
            batch.stop(place)
        if dropped:
            kept = steps - dropped
            # Whatever the row came to behind the end of its text, it has not come to it.
            logprobs[kept:, place, 0] = 0
            self._runner.rewind(place, fed)
            batch.tell_again(place, tokens[:kept, place], steps)
        batch.taken(place, row)

    def _flush(self, place: int, now: float) -> bool:
        """Send what a row has; returns whether its reader is behind with what was sent before."""
        row = self._scheduler.active[place]
        is_behind = self._scheduler.is_behind(row)
        row.take(self._batch.take(place), None)
        delta = row.flush(now)
        if delta is not None:
            self._outbox.put_delta(row.turn, delta, now)
        self._batch.taken(place, row)
        # A row that is told again what it keeps of a run is about to leave.
        return is_behind and not row.has_ended

    def _company(self) -> int:
        """Rows of the whole model, as far as this thread can tell."""
        return sum(lane.stats.active for lane in self.siblings)

    def _fail(self, place: int) -> None:
        """A row's state has left the range of float32, as that of a ReLU network can."""
        row = self._scheduler.active[place]
        log_event(logger, logging.ERROR, "state_overflow", model=self._name)
        self._outbox.put(row.turn, EngineFailure("the state is not finite any more"))
        self._leave(place)

    def _measure(self, rows: int, started: float, before_run: float, after_run: float) -> None:
        self.stats.batch.observe(rows)
        parts = self.stats.parts
        host = before_run - started + self._clock() - after_run
        parts["host"].observe(host)
        parts["run"].observe(after_run - before_run)

    def _fail_told(self, places: Places) -> None:
        """A run that was only to tell these rows failed: the others stand where they stood."""
        self.stats.failures += 1
        for place in sorted(places.tolist(), reverse=True):
            self._outbox.put(self._scheduler.active[place].turn, EngineFailure("a run failed"))
            self._leave(place)
        # Parked rows may have caught up meanwhile.
        self.nudge()

    def _fail_all(self) -> None:
        """A run failed: no row's state is sound any more."""
        self.stats.failures += 1
        for row in self._scheduler.active:
            self._outbox.put(row.turn, EngineFailure("a run failed"))
        self._scheduler.active.clear()
        self._batch.clear()
        # Parked rows may have caught up meanwhile.
        self.nudge()
