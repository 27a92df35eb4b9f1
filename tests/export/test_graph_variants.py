"""Both graphs of every variant of a network, against what PyTorch and Keras compute."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import letters, save, state_dict
from support.networks import (
    Tokens,
    Weights,
    expected_logprobs,
    network,
    run_engine,
    run_portable,
    run_prompt,
    session,
    some_tokens,
    starts,
)
from unrolled_export import cells, parity
from unrolled_export.building import Build, build, check
from unrolled_export.manifest import weights_sha256
from unrolled_export.network import Activation, Cell, Gate, Network, Stage
from unrolled_export.precision import Precision
from unrolled_export.progress import no_progress
from unrolled_export.repository import ENGINE, PORTABLE, PROMPT

Stages = Callable[[Weights, int], Sequence[Stage]]
HARD = (Gate.HARD_SIGMOID_FIFTH, Gate.HARD_SIGMOID_SIXTH)


def dense(activation: Activation) -> Stages:
    return lambda weights, size: [weights.dense(size, 8, activation)]


def normalised(weights: Weights, size: int) -> Sequence[Stage]:
    return [weights.norm(size)]


def several(weights: Weights, size: int) -> Sequence[Stage]:
    relu = weights.dense(size, 8, Activation.RELU)
    return [weights.norm(size), relu, weights.norm(8), weights.dense(8, 5, Activation.TANH)]


VARIANTS: dict[str, Callable[[], Network]] = {
    **{f"{cell}": partial(network, cell) for cell in Cell},
    **{f"{cell} one-hot": partial(network, cell, embedding=None) for cell in Cell},
    **{f"{cell} norms": partial(network, cell, norms=True) for cell in Cell},
    **{f"{cell} initial": partial(network, cell, initial=True) for cell in Cell},
    **{f"lstm {gate}": partial(network, Cell.LSTM, gate=gate) for gate in HARD},
    **{f"gru {gate}": partial(network, Cell.GRU, gate=gate) for gate in HARD},
    **{
        f"gru before {gate}": partial(network, Cell.GRU, gate=gate, reset_after=False)
        for gate in Gate
    },
    "lstm projected": partial(network, Cell.LSTM, projections=(4, 3)),
    "lstm partly projected": partial(network, Cell.LSTM, projections=(None, 3), embedding=None),
    **{f"gru {kind}": partial(network, Cell.GRU, stages=dense(kind)) for kind in Activation},
    "rnn normalised": partial(network, Cell.RNN_TANH, stages=normalised),
    "lstm several stages": partial(network, Cell.LSTM, stages=several),
    "lstm everything": partial(
        network,
        Cell.LSTM,
        sizes=(7, 6, 8),
        projections=(4, None, 3),
        norms=True,
        stages=several,
        gate=Gate.HARD_SIGMOID_SIXTH,
        initial=True,
    ),
    "gru everything": partial(
        network,
        Cell.GRU,
        embedding=None,
        sizes=(9,),
        stages=several,
        gate=Gate.HARD_SIGMOID_FIFTH,
        reset_after=False,
        initial=True,
    ),
}


def assert_graphs_agree(built: Build, tokens: Tokens) -> None:
    """With the oracle, the portable graph in two chunks, the engine's in runs of three sizes."""
    model, wanted = built.network, expected_logprobs(built.network, tokens[:, :-1])
    portable, engine = session(built.graphs[PORTABLE]), session(built.graphs[ENGINE])
    states, parts = starts(model, len(tokens)), []
    for chunk in (tokens[:, :13], tokens[:, 13:-1]):
        logits, states = run_portable(portable, chunk, states)
        parts.append(torch.from_numpy(logits).double().log_softmax(-1).numpy())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, rtol=0, atol=1e-5)
    states, parts = starts(model, len(tokens)), []
    for first, last in ((0, 1), (1, 9), (9, tokens.shape[1] - 1)):
        logprobs, states = run_engine(engine, tokens[:, first : last + 1], states)
        parts.append(logprobs)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, rtol=0, atol=1e-5)
    assert_prompts_lead_to_the_same_bits(built, tokens)


def assert_prompts_lead_to_the_same_bits(built: Build, tokens: Tokens) -> None:
    """The prompt graph, in runs of three sizes, against the engine's a token at a time."""
    if built.network.cell is Cell.RNN_RELU:
        assert PROMPT not in built.graphs
        return
    prompt, engine = session(built.graphs[PROMPT]), session(built.graphs[ENGINE])
    states = told = starts(built.network, len(tokens))
    for first, last in ((0, 1), (1, 9), (9, tokens.shape[1] - 1)):
        told = run_prompt(prompt, tokens[:, first:last], told)
        for place in range(first, last):
            _, states = run_engine(engine, tokens[:, place : place + 2], states)
        assert {name: state.tobytes() for name, state in told.items()} == {
            name: state.tobytes() for name, state in states.items()
        }


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU])
def test_prompts_lead_to_the_same_bits_in_every_precision(
    cell: Cell, precision: Precision, rows: int
) -> None:
    built = build(network(cell, sizes=(100, 96)), precision)
    assert_prompts_lead_to_the_same_bits(built, some_tokens(rows, 70))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", VARIANTS)
def test_both_graphs_compute_what_the_variant_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(VARIANTS[name](), Precision.FP32)
    assert_graphs_agree(built, some_tokens(3, 31))
    if "everything" not in name:
        monkeypatch.setattr(parity, "LENGTHS", (128, 64, 64))
    found = check(built, no_progress)
    assert found.max_abs_logprob_error <= found.tolerance == 1e-4
    assert "state taken" not in found.reference


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU])
def test_a_network_too_large_for_a_table(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "LARGEST_TABLE", 0)
    assert_graphs_agree(build(network(cell), Precision.FP32), some_tokens(3, 31))


def test_every_variant_computes_something_else() -> None:
    """So that a graph of another variant cannot pass, and their states are not exchanged."""
    tokens = some_tokens(2, 25)
    for cell in (Cell.LSTM, Cell.GRU):
        plain = network(cell)
        others = [replace(plain, gate=gate) for gate in HARD]
        if cell is Cell.GRU:
            others += [replace(other, reset_after=False) for other in (plain, *others)]
        found = [expected_logprobs(model, tokens) for model in (plain, *others)]
        for index, one in enumerate(found):
            assert all(np.abs(one - other).max() > 1e-2 for other in found[:index])
        assert len({weights_sha256(model) for model in (plain, *others)}) == 1 + len(others)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("cell", [Cell.RNN_TANH, Cell.LSTM, Cell.GRU])
def test_a_network_gives_the_same_bytes(cell: Cell, precision: Precision) -> None:
    one, two = (build(network(cell, norms=True), precision).graphs for _ in range(2))
    assert one == two


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict("gru", layers=2), letters(5))
    written = []
    for seed in ("1", "2"):
        output = tmp_path / seed
        command = [sys.executable, "-m", "unrolled_export", "convert", *arguments]
        subprocess.run(
            [*command, "--output", str(output)],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            timeout=200,
        )
        files = [path for path in output.rglob("*") if path.is_file()]
        written.append({path.relative_to(output): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert len(written[0]) == 5
