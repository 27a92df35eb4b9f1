"""The baseline: a text generation server such as most people write.

gRPC and PyTorch, a pool of threads, one call of nn.LSTM for each token, no batching, a message a
token. It answers StreamComplete of the contract, as far as the benchmark uses it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import torch
from safetensors.torch import load_file
from torch import nn
from unrolled.v1 import completion_pb2
from unrolled.v1.completion_pb2 import CompleteEvent, CompleteRequest, Delta, Outcome

from bench.models import CHARACTERS

State = tuple[torch.Tensor, torch.Tensor] | None


class CharacterModel(nn.Module):
    """Embedding, LSTM, linear head, with the sizes of a checkpoint."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        size, embedding = tensors["embed.weight"].shape
        hidden = tensors["out.weight"].shape[1]
        layers = sum(name.startswith("rnn.weight_hh") for name in tensors)
        self.embed = nn.Embedding(size, embedding)
        self.rnn = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.out = nn.Linear(hidden, size)
        self.load_state_dict(tensors)
        self.eval()

    def advance(self, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Logits [1, V] of what follows `ids` [1, T], and the state there."""
        output, state = self.rnn(self.embed(ids), state)
        return self.out(output[:, -1]), state


class NaiveService:
    """Each call runs its own loop in a thread of the pool."""

    def __init__(self, model: CharacterModel, prompt_at_once: bool) -> None:
        self._model = model
        self._prompt_at_once = prompt_at_once
        self._ids = {character: place for place, character in enumerate(CHARACTERS)}

    def handler(self) -> grpc.GenericRpcHandler:
        """StreamComplete of the contract, and nothing else of it."""
        method = grpc.unary_stream_rpc_method_handler(
            self.stream_complete,
            request_deserializer=CompleteRequest.FromString,
            response_serializer=CompleteEvent.SerializeToString,
        )
        service = completion_pb2.DESCRIPTOR.services_by_name["CompletionService"].full_name
        return grpc.method_handlers_generic_handler(service, {"StreamComplete": method})

    @torch.inference_mode()
    def stream_complete(
        self, request: CompleteRequest, context: grpc.ServicerContext
    ) -> Iterator[CompleteEvent]:
        """Tell the prompt, then draw and send a token at a time."""
        told = torch.tensor([[self._ids[character] for character in request.prompt]])
        logits, state = self._tell(told)
        for number in range(1, request.max_tokens + 1):
            token = torch.multinomial(torch.softmax(logits, -1), 1)
            drawn = int(token)
            yield CompleteEvent(delta=Delta(text=CHARACTERS[drawn], token_ids=[drawn]))
            if number < request.max_tokens:
                logits, state = self._model.advance(token, state)
        yield CompleteEvent(outcome=Outcome())

    def _tell(self, ids: torch.Tensor) -> tuple[torch.Tensor, State]:
        if self._prompt_at_once:
            return self._model.advance(ids, None)
        state: State = None
        for place in range(ids.shape[1]):
            logits, state = self._model.advance(ids[:, place : place + 1], state)
        return logits, state


def main() -> None:
    """Serve a checkpoint of `bench.models` until killed; prints the port."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, required=True, help="streams that advance at once")
    parser.add_argument("--prompt-at-once", action="store_true")
    arguments = parser.parse_args()
    # The pool keeps all cores busy; a thread more for each product would only get in their way.
    torch.set_num_threads(1)
    service = NaiveService(
        CharacterModel(load_file(arguments.checkpoint)), arguments.prompt_at_once
    )
    server = grpc.server(ThreadPoolExecutor(arguments.threads))
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
