"""`config.pbtxt`: what makes the repository one of Triton Inference Server's as well.

Triton keeps the states (sequence batching with implicit state) and starts each at zero, or at
what a file in the folder `initial_state` holds. It
pairs several states by sorted name (triton-inference-server/server#8586), which the names of
`Network.states` allow for.
"""

from __future__ import annotations

from unrolled_export.network import Network, State
from unrolled_export.repository import CONFIG

MAX_BATCH_SIZE = 256
MAX_SEQUENCES = 1024
MAX_IDLE_MICROSECONDS = 600_000_000
"""Ten minutes: after one second, Triton's own choice, nobody has read a line."""


def triton_files(name: str, network: Network) -> dict[str, bytes]:
    """The configuration and the first states, by their paths in the model's folder."""
    starts = zip(network.states, network.initial or (), strict=network.initial is not None)
    return {CONFIG: _config(name, network).encode()} | {
        f"initial_state/{state.input}": values.astype("<f4").tobytes() for state, values in starts
    }


def _config(name: str, network: Network) -> str:
    """The configuration in protobuf's text format."""
    states = "\n".join(_state(state, network.initial is None) for state in network.states)
    return f"""\
name: "{name}"
platform: "onnxruntime_onnx"
default_model_filename: "model.onnx"
max_batch_size: {MAX_BATCH_SIZE}
input {{
  name: "tokens"
  data_type: TYPE_INT64
  dims: [ -1 ]
}}
output {{
  name: "logits"
  data_type: TYPE_FP32
  dims: [ -1, {network.vocabulary_size} ]
}}
sequence_batching {{
  max_sequence_idle_microseconds: {MAX_IDLE_MICROSECONDS}
  oldest {{
    max_candidate_sequences: {MAX_SEQUENCES}
  }}
{states}
}}
"""


def _state(state: State, starts_at_zero: bool) -> str:
    start = "zero_data: true" if starts_at_zero else f'data_file: "{state.input}"'
    return f"""\
  state {{
    input_name: "{state.input}"
    output_name: "{state.output}"
    data_type: TYPE_FP32
    dims: [ {state.size} ]
    initial_state {{
      name: "start_{state.input}"
      data_type: TYPE_FP32
      dims: [ {state.size} ]
      {start}
    }}
  }}"""
