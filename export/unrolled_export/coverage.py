"""Which products of a network are made in 8 bits: those that bear it.

Some trained networks hang on a few large weights, which leave too coarse a scale for the others of
their row. So the rounding is tried on text that the network itself has drawn, and while its
perplexity rises by more than LIMIT, the product that alone costs most goes back to fp32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unrolled_export.errors import PrecisionError
from unrolled_export.network import Network
from unrolled_export.precision import Precision, quantized
from unrolled_export.progress import Progress
from unrolled_export.quantization import QuantizedWeight
from unrolled_export.reference import Tokens, initial_states
from unrolled_export.runners import DRAW, EngineRunner
from unrolled_export.step_graph import step_graph

LIMIT = 1e-3
"""Largest rise of the perplexity, as a share of it: half of what int8 may cost in all."""
ROWS = 32
STEPS = 100
"""Short texts: many a model repeats itself in the end."""

Products = Mapping[str, QuantizedWeight]


def borne(network: Network, base: EngineRunner, progress: Progress) -> Products:
    """The 8-bit weights of the products that may be made in bytes; `base` is the fp32 graph.

    Raises PrecisionError where there are none.
    """
    trial = _Trial(network, base)
    products = dict(quantized(network, Precision.INT8))
    with progress("rounding", None):
        while (rise := trial.rise(products)) > LIMIT:
            costs = {name: trial.rise({name: products[name]}) for name in products}
            worst = max(costs, key=costs.__getitem__)
            del products[worst]
            if not products:
                raise PrecisionError(
                    f"--precision int8: covers no product of this model: rounding {worst} alone "
                    f"raises the perplexity of its own text by {100 * rise:.2g} %"
                )
    return products


class _Trial:
    """A text drawn from the network, and what it costs."""

    def __init__(self, network: Network, base: EngineRunner) -> None:
        self._network = network
        first = np.arange(ROWS) % network.vocabulary_size
        told = np.full((ROWS, STEPS), DRAW)
        drawn = base.draw(first, told, initial_states(network, ROWS), greedy=False)
        self._text: Tokens = np.column_stack([first, drawn])
        self._nats = self._cost(base)

    def rise(self, products: Products) -> float:
        """How much larger the perplexity is with these products in bytes, as a share of it."""
        if not products:
            return 0.0
        graph = step_graph(self._network, Precision.INT8, products)
        network = self._network
        engine = EngineRunner(
            network.state_names, network.vocabulary_size, graph.SerializeToString()
        )
        return float(np.expm1(self._cost(engine) - self._nats))

    def _cost(self, engine: EngineRunner) -> float:
        """Nats of a token."""
        states, total = initial_states(self._network, ROWS), 0.0
        for step in range(STEPS):
            window = self._text[:, step : step + 2]
            logprobs, states = engine.advance(window, states)
            followed = np.take_along_axis(logprobs, window[:, 1:, None], axis=-1)
            total -= float(followed.sum(dtype=np.float64))
        return total / (ROWS * STEPS)
