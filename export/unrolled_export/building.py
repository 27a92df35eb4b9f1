"""From a network to checked graphs in one precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unrolled_export.coverage import borne
from unrolled_export.device_check import check_device
from unrolled_export.device_graph import STEP, check_precision, device_graphs
from unrolled_export.network import Cell, Network
from unrolled_export.parity import Parity, check_parity
from unrolled_export.portable_graph import portable_graph
from unrolled_export.precision import Precision, rounded
from unrolled_export.progress import Progress, no_progress
from unrolled_export.prompt_check import has_same_bits
from unrolled_export.prompt_graph import prompt_graph
from unrolled_export.quantization import QuantizedWeight
from unrolled_export.repository import ENGINE, PORTABLE, PROMPT
from unrolled_export.runners import EngineRunner
from unrolled_export.step_graph import step_graph


@dataclass(frozen=True)
class Build:
    """The graphs of a network."""

    network: Network
    """As read, in float32."""
    precision: Precision
    products: Mapping[str, QuantizedWeight]
    """The weights of the products that the engine makes in bytes."""
    graphs: dict[str, bytes]
    """By file name."""
    engine: EngineRunner
    base: EngineRunner
    """The engine's graph in fp32: `engine` itself where that is the precision."""
    base_bytes: int
    """Size of the base's file."""


def build(
    network: Network,
    precision: Precision,
    progress: Progress = no_progress,
    *,
    for_device: bool = False,
) -> Build:
    """`for_device` adds the graphs for a device.

    Raises GraphError or PrecisionError where graphs cannot be made.
    """
    if for_device:
        check_precision(precision)
    base_graph = engine_graph = step_graph(network).SerializeToString(deterministic=True)
    base = engine = _runner(network, base_graph)
    stored = rounded(network, precision)
    products = borne(network, base, progress) if precision is Precision.INT8 else {}
    if precision is not Precision.FP32:
        graph = step_graph(stored, precision, products)
        engine_graph = graph.SerializeToString(deterministic=True)
        engine = _runner(network, engine_graph)
    portable = portable_graph(stored, precision is Precision.FP16)
    graphs = {PORTABLE: portable.SerializeToString(deterministic=True), ENGINE: engine_graph}
    graphs |= _prompts(network, stored, precision, products, engine)
    if for_device:
        graphs |= device_graphs(stored, precision)
    return Build(network, precision, products, graphs, engine, base, len(base_graph))


def _prompts(
    network: Network,
    stored: Network,
    precision: Precision,
    products: Mapping[str, QuantizedWeight],
    engine: EngineRunner,
) -> dict[str, bytes]:
    """The graph for prompts; without it the engine's graph runs them, more slowly."""
    if network.cell is Cell.RNN_RELU:
        # Its states can overflow, which is seen where every step makes log-probabilities.
        return {}
    graph = prompt_graph(stored, precision, products).SerializeToString(deterministic=True)
    return {PROMPT: graph} if has_same_bits(network, graph, engine) else {}


def check(build: Build, progress: Progress) -> Parity:
    """Compare the graphs with a reference. Raises ParityError where they differ."""
    network, graphs = rounded(build.network, build.precision), build.graphs
    if STEP in graphs:
        check_device(network, build.precision, graphs[STEP], build.engine)
    return check_parity(network, graphs[PORTABLE], graphs[ENGINE], build.products, progress)


def _runner(network: Network, graph: bytes) -> EngineRunner:
    return EngineRunner(network.state_names, network.vocabulary_size, graph)
