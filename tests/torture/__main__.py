"""Kill a server again and again under 64 streaming clients, and check what each restart serves.

Before that a store that is Redis stands still under the clients, and is killed and restarted.

Every acknowledged turn has to be there, none applied twice, and every session what the oracles'
uninterrupted runs are: bit for bit, and within 1e-4 nats PyTorch's. A line for each; at the
end how long restarts took. The exit status says whether all was so. What was written stays in the
output folder until the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from support.in_process import fill, in_process
from support.models import Repository, make_repository

from torture.rounds import MODELS, Round, Torture, kills
from torture.stores import STORES, TorturedStore

OUT_OF_THE_WAY = 1000
"""Of the other sessions, those that are in memory while they are made."""


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args()
    folder: Path = arguments.output.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("work", "models", "store"):
        (folder / name).mkdir(parents=True)
    repository = make_repository(folder / "work", folder / "models", MODELS)
    with STORES[arguments.store](folder / "store") as store:
        return _torture(repository, store, arguments)


def _torture(repository: Repository, store: TorturedStore, arguments: argparse.Namespace) -> int:
    others = 0 if store.path is None else arguments.sessions
    if store.path is not None and others:
        print(f"storing {others:,} other sessions", flush=True)
        asyncio.run(_fill(repository, store.path, others))
    torture, rounds = Torture(repository, store), []
    try:
        for outage in torture.outages(arguments.outage):
            print(outage, flush=True)
        planned = kills(store.places, arguments.rounds, arguments.seed)
        for number, one in enumerate(torture.rounds(planned), 1):
            print(f"{number:4}  {one}", flush=True)
            rounds.append(one)
        difference = torture.compare_with_torch()
    except (AssertionError, ExceptionGroup):
        traceback.print_exc()
        return 1
    print(_summary(rounds, others, difference))
    return 0


async def _fill(repository: Repository, path: Path, count: int) -> None:
    """Store sessions that nobody asks for, each with one turn taken."""
    async with in_process(repository.path, path, OUT_OF_THE_WAY) as here:
        await fill(here, MODELS[0], range(count), lambda: None)


def _summary(rounds: Sequence[Round], others: int, difference: float) -> str:
    """What all rounds together came to; the first start is none after a kill."""
    seconds = [one.serving for one in rounds[1:]]
    shares = (0, 50, 90, 99, 100)
    times = ", ".join(
        f"{name} {value:.3f}"
        for name, value in zip(
            ("least", "p50", "p90", "p99", "most"), np.percentile(seconds, shares), strict=True
        )
    )
    taken = sum(one.acknowledged for one in rounds)
    return (
        f"{len(seconds)} kills: {taken:,} turns acknowledged, none lost, none doubled,"
        f" {sum(one.replayed for one in rounds):,} replayed;"
        f" bit for bit, PyTorch within {difference:.1g} nats\n"
        f"from start to serving, {others:,} other sessions stored: {times} s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make torture", description=__doc__, formatter_class=_Formatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder, made anew")
    parser.add_argument("--rounds", type=_rounds, default=200, help="servers that are killed")
    parser.add_argument(
        "--outage", type=float, default=30.0, help="seconds for which Redis is gone"
    )
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument(
        "--sessions", type=int, default=100_000, help="stored in SQLite beside the streams'"
    )
    parser.add_argument("--seed", type=int, default=1, help="of when servers are killed")
    return parser


def _rounds(text: str) -> int:
    """At least one server is killed."""
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return rounds


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the description as it is."""


if __name__ == "__main__":
    sys.exit(main())
