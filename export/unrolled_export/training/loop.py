"""Truncated back-propagation through time (Williams and Peng 1990).

The hidden state is carried from chunk to chunk without end; gradients stop at the edge
of each chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm

from unrolled_export.training.checkpoints import Progress, load_resume, save_best, save_resume
from unrolled_export.training.corpus import Corpus, Streams
from unrolled_export.training.curves import draw_curves
from unrolled_export.training.model import CharacterModel, State, detached

VALIDATION_STREAMS = 8
VALIDATION_CHUNK = 512
MIN_UPDATES_BETWEEN_VALIDATIONS = 100
"""Epochs of a tiny text are shorter than this; several of them pass between validations."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, but for the text."""

    cell: str = "lstm"
    layers: int = 2
    hidden: int = 384
    embedding: int = 64
    dropout: float = 0.3
    batch_size: int = 32
    chunk: int = 128
    """Steps per chunk, the length over which gradients flow."""
    epochs: int = 20
    learning_rate: float = 2e-3
    """Peak of the schedule: linear warm-up, then half a cosine down to zero."""
    warmup: int = 100
    """Updates until the peak."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest L2 norm of the gradient."""
    seed: int = 1


class Trainer:
    """One training run: owns the model, the optimizer and the carried state."""

    def __init__(
        self,
        corpus: Corpus,
        recipe: Recipe,
        output: Path,
        sample_every: int = 0,
        start_token: str | None = None,
        end_tokens: tuple[str, ...] = (),
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.corpus, self.recipe, self.output = corpus, recipe, output
        self.start_token, self.end_tokens = start_token, end_tokens
        self.model = CharacterModel(
            recipe.cell,
            len(corpus.characters),
            recipe.embedding,
            recipe.hidden,
            recipe.layers,
            recipe.dropout,
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.updates_per_epoch = max(1, len(corpus.train) // (recipe.batch_size * recipe.chunk))
        self.updates = self.updates_per_epoch * recipe.epochs
        self.close_every = max(self.updates_per_epoch, MIN_UPDATES_BETWEEN_VALIDATIONS)
        self.sample_every = sample_every or self.close_every
        self.streams = Streams(corpus.train, recipe.batch_size)
        self.state: State | None = None
        self.progress = Progress()

    def resume(self) -> None:
        """Go on from the last epoch saved in the output folder."""
        self.progress, self.state = load_resume(
            self.output, self.model, self.optimizer, asdict(self.recipe)
        )
        self.streams.position = self.progress.updates * self.recipe.chunk

    def run(self, say: Callable[[str], None]) -> float:
        """Train to the end; returns the best validation loss in nats per character."""
        with tqdm(total=self.updates, initial=self.progress.updates, unit="update") as bar:
            while self.progress.updates < self.updates:
                loss, state = self._update()
                self.progress.train.append((self.progress.updates, loss))
                bar.update()
                bar.set_postfix_str(f"train {loss:.3f} nats, best {self.progress.best:.4f}")
                if self.progress.updates % self.sample_every == 0:
                    say(self.sample(300))
                if self._epoch_ends():
                    say(self._close_epoch(state))
        return self.progress.best

    def _epoch_ends(self) -> bool:
        done = self.progress.updates
        return done % self.close_every == 0 or done == self.updates

    def _update(self) -> tuple[float, State]:
        """One chunk forward and back; returns its mean loss in nats per character, and the
        state after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._schedule(self.progress.updates)
        inputs, targets = self.streams.next_chunk(self.recipe.chunk)
        logits, state = self.model(inputs, self.state)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.state = detached(state)
        self.progress.updates += 1
        return loss.item(), self.state

    def _schedule(self, update: int) -> float:
        """Share of the peak learning rate at `update`."""
        if update < self.recipe.warmup:
            return (update + 1) / self.recipe.warmup
        done = (update - self.recipe.warmup) / max(1, self.updates - self.recipe.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def _close_epoch(self, state: State) -> str:
        """Validate, keep the best model, make the run resumable; returns a line to show."""
        held_out = len(self.corpus.validation) > 1
        loss = self.validate() if held_out else self.progress.train[-1][1]
        self.progress.validation.append((self.progress.updates, loss))
        if loss < self.progress.best:
            self.progress.best = loss
            save_best(self.output, self.model, self._description(held_out))
        save_resume(
            self.output, self.model, self.optimizer, state, self.progress, asdict(self.recipe)
        )
        draw_curves(self.output / "losses.png", self.progress)
        epoch = math.ceil(self.progress.updates / self.updates_per_epoch)
        name = "validation" if held_out else "training"
        return f"epoch {epoch}: {name} {loss:.4f} nats, {loss / math.log(2):.4f} bits per character"

    def _description(self, held_out: bool) -> dict[str, object]:
        return {
            "format": "unrolled-checkpoint/1",
            "cell": self.recipe.cell,
            "characters": list(self.corpus.characters),
            "start_token": self.start_token,
            "end_tokens": list(self.end_tokens),
            "recipe": asdict(self.recipe),
            "updates": self.progress.updates,
            "validation_nats" if held_out else "training_nats": self.progress.best,
        }

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss in nats per character over the held-out text, state carried throughout.

        Read as a few parallel streams that each start from the zero state, which costs a
        little against one stream; `unrolled-export evaluate` reads it as one.
        """
        self.model.eval()
        ids = self.corpus.validation
        count = min(VALIDATION_STREAMS, len(ids) - 1)
        length = (len(ids) - 1) // count
        inputs = ids[: count * length].view(count, length)
        targets = ids[1 : count * length + 1].view(count, length)
        state: State | None = None
        total = 0.0
        for start in range(0, length, VALIDATION_CHUNK):
            stop = start + VALIDATION_CHUNK
            logits, state = self.model(inputs[:, start:stop], state)
            total += functional.cross_entropy(
                logits.flatten(0, 1), targets[:, start:stop].flatten(), reduction="sum"
            ).item()
        self.model.train()
        return total / (count * length)

    @torch.no_grad()
    def sample(self, length: int, temperature: float = 0.8) -> str:
        """Text drawn from the model as it stands, begun with the first character of the text."""
        self.model.eval()
        ids = [int(self.corpus.train[0])]
        state: State | None = None
        for _ in range(length):
            logits, state = self.model(torch.tensor([[ids[-1]]]), state)
            chances = torch.softmax(logits[0, -1] / temperature, dim=0)
            ids.append(int(torch.multinomial(chances, 1)))
        self.model.train()
        return "".join(self.corpus.characters[index] for index in ids)
