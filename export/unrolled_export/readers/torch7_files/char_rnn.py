"""Models of Karpathy's char-rnn: an nngraph of one step of all layers.

Equations: model/LSTM.lua, GRU.lua and RNN.lua of char-rnn. The graph in the file is compared with
them, whatever the order of its modules, and refused where it is another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.tensors import Tensors
from unrolled_export.readers.torch7_files.nn_modules import (
    kind_of,
    module_tensors,
    take,
    take_bias,
    to_torch_order,
    tokens_by_id,
)
from unrolled_export.readers.torch7_files.nngraph import Graph, module_list
from unrolled_export.readers.torch7_files.t7_file import Table

_ORDER_ASSUMED = "the modules are in the order in which char-rnn makes them"


@dataclass(frozen=True)
class _Roles:
    """Names of the nn.Linear modules by what they are for."""

    cell: Cell
    layers: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Of each layer, those of the input and those of the hidden state: one each, or u, r and n
    of a GRU."""
    head: str
    embedding: str | None
    """The nn.LookupTable; None where the input is one-hot."""


def read_char_rnn(file: Path, checkpoint: Table) -> Checkpoint:
    """Read a checkpoint with `protos`. Raises CheckpointError."""
    protos = checkpoint.get("protos")
    module = protos.get("rnn") if isinstance(protos, Table) else None
    if not isinstance(module, Table) or kind_of(module) != "gModule":
        raise CheckpointError(file, "protos.rnn is not an nn.gModule, as char-rnn makes it")
    modules = module_list(file, module)
    tensors = module_tensors(file, modules)
    graph = Graph.of(file, module, modules)
    roles = _ordered_roles(tensors, modules) if graph is None else _matched_roles(tensors, graph)
    network = _network(tensors, roles)
    return Checkpoint(
        network,
        (file,),
        f"char-rnn checkpoint: {_reading(roles)}",
        _tokens(file, checkpoint, network.vocabulary_size),
        assumptions=(_ORDER_ASSUMED,) if graph is None else (),
    )


def _tokens(file: Path, checkpoint: Table, size: int) -> tuple[str, ...] | None:
    vocabulary = checkpoint.get("vocab")
    if vocabulary is None:
        return None
    if not isinstance(vocabulary, Table):
        raise CheckpointError(file, "vocab is not a table")
    pairs = ((number, token) for token, number in vocabulary.fields.items())
    tokens = tokens_by_id(file, "vocab", pairs)
    if len(tokens) != size:
        raise CheckpointError(file, f"vocab has {len(tokens)} tokens where the weights have {size}")
    return tuple(tokens)


def _matched_roles(tensors: Tensors, graph: Graph) -> _Roles:
    """The roles under which the graph computes what char-rnn's equations say."""
    *states, scores = graph.outputs
    head = graph.linear_under(scores)
    for cell in (Cell.LSTM, Cell.GRU, Cell.RNN_TANH):
        layers = tuple(_matched_layers(tensors, graph, cell, states))
        count = len(states) // 2 if cell is Cell.LSTM else len(states)
        is_whole = len(layers) == count > 0
        if head is not None and is_whole and graph.linears[head] == states[-1]:
            return _Roles(cell, layers, head, graph.embedding)
    raise tensors.error("protos.rnn does not compute what an LSTM, GRU or RNN of char-rnn does")


def _matched_layers(
    tensors: Tensors, graph: Graph, cell: Cell, states: list[int]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The linear modules of each layer, up to the first that does not fit."""
    per_layer = 2 if cell is Cell.LSTM else 1
    below = graph.first_input
    for start in range(0, len(states), per_layer):
        wanted = states[start : start + per_layer]
        # Input 0 is the token, then come the states in the outputs' order.
        before = [graph.input(1 + start + index) for index in range(len(wanted))]
        inputs, hiddens = graph.fed_by(below), graph.fed_by(before[-1])
        found = _matched_layer(tensors, graph, cell, (inputs, hiddens), before, wanted)
        if found is None:
            return
        yield found
        below = wanted[-1]


def _matched_layer(
    tensors: Tensors,
    graph: Graph,
    cell: Cell,
    linears: tuple[list[str], list[str]],
    before: list[int],
    wanted: list[int],
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The linear modules of a layer whose next states are the expressions `wanted`."""
    inputs, hiddens = linears
    if cell is Cell.GRU:
        return _matched_gru_layer(graph, inputs, hiddens, before[0], wanted[0])
    if len(inputs) != 1 or len(hiddens) != 1:
        return None
    total = graph.add(graph.linear(inputs[0]), graph.linear(hiddens[0]))
    after = [graph.apply("tanh", total)]
    if cell is Cell.LSTM and len(before) == 2:
        size = tensors.matrix_shape(f"{hiddens[0]}.weight")[1]
        after = list(_lstm(graph, total, before[0], size))
    return ((inputs[0],), (hiddens[0],)) if after == wanted else None


def _lstm(graph: Graph, total: int, cell: int, size: int) -> tuple[int, int]:
    """c' = f * c + i * g, h' = o * tanh(c'), of the gates i, f, o, g."""
    i, f, o, g = (graph.block(index * size, size, total) for index in range(4))
    i, f, o = (graph.apply("sigmoid", gate) for gate in (i, f, o))
    after = graph.add(graph.multiply(f, cell), graph.multiply(i, graph.apply("tanh", g)))
    return after, graph.multiply(o, graph.apply("tanh", after))


def _matched_gru_layer(
    graph: Graph, inputs: list[str], hiddens: list[str], hidden: int, wanted: int
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    # More modules are another graph, not more orders to try.
    if len(inputs) != 3 or len(hiddens) != 2:
        return None
    orders = itertools.product(itertools.permutations(inputs), itertools.permutations(hiddens))
    for over, under in orders:
        last = _matched_gru(graph, over, under, hidden, wanted)
        if last is not None:
            return over, (*under, last)
    return None


def _matched_gru(
    graph: Graph, over: tuple[str, ...], under: tuple[str, ...], hidden: int, wanted: int
) -> str | None:
    """The linear module of r * h with which h' = (1 - u) * h + u * n is `wanted`.

    u, r = sigmoid(over + under), n = tanh(over_n + module(r * h)).
    """
    u, r = (
        graph.apply("sigmoid", graph.add(graph.linear(one), graph.linear(other)))
        for one, other in zip(over, under, strict=False)
    )
    kept = graph.multiply(graph.one_minus(u), hidden)
    for name in graph.fed_by(graph.multiply(r, hidden)):
        n = graph.apply("tanh", graph.add(graph.linear(over[2]), graph.linear(name)))
        if graph.add(graph.multiply(u, n), kept) == wanted:
            return name
    return None


def _ordered_roles(tensors: Tensors, modules: list[tuple[str, Table]]) -> _Roles:
    """The roles of a file that lists modules without how they are connected.

    In each layer of an LSTM or RNN come i2h and h2h, in one of a GRU i2h and h2h of u and r, then
    h2h and i2h of n.
    """
    names = [name for name, module in modules if kind_of(module).startswith("Linear")]
    tables = [name for name, module in modules if kind_of(module) == "LookupTable"]
    if len(names) < 3:
        raise tensors.error("protos.rnn has fewer than 3 linear modules")
    rows, columns = tensors.matrix_shape(f"{names[1]}.weight")
    plain = Cell.GRU if (len(names) - 1) % 6 == 0 and _is_gru(tensors, names) else Cell.RNN_TANH
    cell = Cell.LSTM if rows == 4 * columns else plain
    per_layer = 6 if cell is Cell.GRU else 2
    if len(names) % per_layer != 1:
        raise tensors.error(f"protos.rnn has {len(names)} linear modules, which fit no {cell}")
    groups = [names[at : at + per_layer] for at in range(0, len(names) - 1, per_layer)]
    layers = tuple(
        ((g[0], g[2], g[5]), (g[1], g[3], g[4])) if cell is Cell.GRU else ((g[0],), (g[1],))
        for g in groups
    )
    return _Roles(cell, layers, names[-1], tables[0] if tables else None)


def _is_gru(tensors: Tensors, names: list[str]) -> bool:
    """Whether the first, third and sixth module read the same input, as in a layer of a GRU."""
    shapes = [tensors.shape(f"{names[index]}.weight") for index in range(6)]
    return shapes[0] == shapes[2] == shapes[5] and shapes[1] == shapes[3] == shapes[4]


def _network(tensors: Tensors, roles: _Roles) -> Network:
    embedding = None if roles.embedding is None else tensors.take(f"{roles.embedding}.weight")
    vocabulary = tensors.matrix_shape(f"{roles.head}.weight")[0]
    if embedding is not None and len(embedding) != vocabulary:
        raise tensors.error(f"{roles.embedding}.weight has not the head's {vocabulary} tokens")
    below = vocabulary if embedding is None else int(embedding.shape[1])
    layers: list[Layer] = []
    for inputs, hiddens in roles.layers:
        layers.append(_layer(tensors, roles.cell, inputs, hiddens, below))
        below = layers[-1].hidden_size
    weight, bias = _linear(tensors, roles.head, vocabulary, below)
    tensors.check_all_taken(_reading(roles))
    reset_after = roles.cell is not Cell.GRU
    parameters = tensors.numbers_taken
    return Network(
        roles.cell, embedding, tuple(layers), weight, bias, parameters, reset_after=reset_after
    )


def _layer(
    tensors: Tensors, cell: Cell, inputs: tuple[str, ...], hiddens: tuple[str, ...], below: int
) -> Layer:
    size = tensors.matrix_shape(f"{hiddens[0]}.weight")[1]
    rows = cell.gates * size // len(inputs)
    over = [_linear(tensors, name, rows, below) for name in inputs]
    under = [_linear(tensors, name, rows, size) for name in hiddens]
    weight_ih, weight_hh = (_joined([w for w, _ in side], cell) for side in (over, under))
    bias_ih, bias_hh = (_joined([b for _, b in side], cell) for side in (over, under))
    return Layer(weight_ih, weight_hh, bias_ih, bias_hh)


def _joined(blocks: list[Floats], cell: Cell) -> Floats:
    return np.ascontiguousarray(to_torch_order(np.concatenate(blocks), cell))


def _linear(tensors: Tensors, name: str, rows: int, columns: int) -> tuple[Floats, Floats]:
    beside = f"a layer over {columns} inputs"
    weight = take(tensors, f"{name}.weight", (rows, columns), beside)
    return weight, take_bias(tensors, f"{name}.bias", rows, beside)


def _reading(roles: _Roles) -> str:
    embedding = f"embedding {roles.embedding}" if roles.embedding else "one-hot input"
    return f"{embedding}, {len(roles.layers)} {roles.cell} in protos.rnn, head {roles.head}"
