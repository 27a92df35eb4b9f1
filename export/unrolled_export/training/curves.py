"""Loss curves as a PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unrolled_export.training.checkpoints import Progress


def draw_curves(path: Path, progress: Progress) -> None:
    """Draw training (smoothed) and validation loss over updates, in nats per character."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    updates, losses = zip(*_smoothed(progress.train), strict=True)
    axes.plot(updates, losses, color="tab:blue", linewidth=1, label="training (with dropout)")
    updates, losses = zip(*progress.validation, strict=True)
    label = f"end of epoch, best {progress.best:.4f}"
    axes.plot(updates, losses, color="tab:orange", marker="o", markersize=3, label=label)
    axes.set_xlabel("updates")
    axes.set_ylabel("nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def _smoothed(points: list[tuple[int, float]], share: float = 0.02) -> list[tuple[int, float]]:
    """Exponential moving average that weighs each new loss by `share`."""
    mean = points[0][1]
    out = []
    for update, loss in points:
        mean += share * (loss - mean)
        out.append((update, mean))
    return out
