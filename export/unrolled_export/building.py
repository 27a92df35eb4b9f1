"""From a network to checked graphs in one precision."""

from __future__ import annotations

from dataclasses import dataclass

from unrolled_export.network import Network
from unrolled_export.parity import Parity, check_parity
from unrolled_export.portable_graph import portable_graph
from unrolled_export.precision import Precision, quantized, rounded
from unrolled_export.progress import Progress, no_progress
from unrolled_export.repository import ENGINE, PORTABLE
from unrolled_export.runners import EngineRunner
from unrolled_export.step_graph import step_graph


@dataclass(frozen=True)
class Build:
    """The graphs of a network."""

    network: Network
    """As read, in float32."""
    precision: Precision
    graphs: dict[str, bytes]
    """By file name."""
    engine: EngineRunner
    base: EngineRunner
    """The engine's graph in fp32: `engine` itself where that is the precision."""
    base_bytes: int
    """Size of the base's file."""


def build(network: Network, precision: Precision, progress: Progress = no_progress) -> Build:
    """Raises GraphError or PrecisionError where the graphs cannot be made."""
    with progress("building", None):
        return _build(network, precision)


def _build(network: Network, precision: Precision) -> Build:
    base_graph = engine_graph = step_graph(network).SerializeToString(deterministic=True)
    base = engine = _runner(network, base_graph)
    if precision is not Precision.FP32:
        stored = rounded(network, precision)
        engine_graph = step_graph(stored, precision).SerializeToString(deterministic=True)
        engine = _runner(network, engine_graph)
    portable = portable_graph(rounded(network, precision), precision is Precision.FP16)
    graphs = {PORTABLE: portable.SerializeToString(deterministic=True), ENGINE: engine_graph}
    return Build(network, precision, graphs, engine, base, len(base_graph))


def check(build: Build, progress: Progress) -> Parity:
    """Compare the graphs with a reference. Raises ParityError where they differ."""
    network = rounded(build.network, build.precision)
    in_bytes = quantized(network, build.precision)
    return check_parity(network, build.graphs[PORTABLE], build.graphs[ENGINE], in_bytes, progress)


def _runner(network: Network, graph: bytes) -> EngineRunner:
    return EngineRunner(network.state_names, network.vocabulary_size, graph)
