"""Graphs in onnxruntime: whether one is what the manifest says, and why one cannot be run."""

from __future__ import annotations

import onnxruntime

from unrolled_server.running import RunnerError, StateSpec


def check_drawing(
    graph: str,
    session: onnxruntime.InferenceSession,
    states: tuple[StateSpec, ...],
    vocabulary: int,
) -> None:
    """Refuse a graph that draws for another model than the manifest's. Raises RunnerError."""
    _check_states(graph, session, states)
    (width,) = [value.shape[-1] for value in session.get_outputs() if value.name == "logprobs"] or [
        None
    ]
    if width != vocabulary:
        raise RunnerError(f"{graph}: logprobs are over {width} tokens, not {vocabulary}")


def check_prompt(
    graph: str, session: onnxruntime.InferenceSession, states: tuple[StateSpec, ...]
) -> None:
    """Refuse a graph that is not one for prompts of this model. Raises RunnerError."""
    _check_states(graph, session, states)
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    known = {spec.input for spec in states}, {spec.output for spec in states}
    if (inputs - known[0], outputs) != ({"fed"}, known[1]):
        raise RunnerError(f"{graph}: its inputs and outputs are not those of a prompt graph")


def _check_states(
    graph: str, session: onnxruntime.InferenceSession, states: tuple[StateSpec, ...]
) -> None:
    """Refuse a graph that has other states than the manifest says. Raises RunnerError."""
    named = {value.name: value.shape for value in session.get_inputs()}
    for spec in states:
        shape = named.get(spec.input)
        if shape is None or shape[1:] != [spec.size]:
            raise RunnerError(f"{graph}: input {spec.input} is {shape}, not [B, {spec.size}]")


def reason(error: Exception) -> str:
    """The first line of what onnxruntime raised, whose types share no base class but this."""
    return (str(error).splitlines() or [type(error).__name__])[0]
