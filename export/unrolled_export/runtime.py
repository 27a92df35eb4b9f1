"""Running graphs: the only module of the exporter that imports onnxruntime."""

from __future__ import annotations

from typing import Any

import onnxruntime
from numpy.typing import NDArray

from unrolled_export.errors import GraphError

_ERRORS_ONLY = 3


class Graph:
    """A graph on one core of the CPU."""

    def __init__(self, name: str, content: bytes) -> None:
        """Load a serialised model. Raises GraphError where onnxruntime refuses it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self.name = name
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        # What onnxruntime raises has no common base of its own.
        except Exception as error:
            raise GraphError(f"{name}: onnxruntime refuses it: {_one_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises GraphError where the run fails."""
        try:
            values = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise GraphError(f"{self.name}: {_one_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
