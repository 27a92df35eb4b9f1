"""The command line `unrolled-export`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from unrolled_export.setting_keys import keys


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # onnxruntime reports its use to its maker unless told not to before it is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        print(f"unrolled-export: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unrolled-export",
        description="Train recurrent language models and export them for unrolled-server.",
    )
    parser.add_argument("--version", action="version", version=version("unrolled"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_convert(commands)
    _add_inspect(commands)
    _add_evaluate(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a character language model on a text file",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument("text", metavar="TEXT", help="UTF-8 text file")
    train.add_argument("--output", required=True, metavar="DIR", help="folder of the checkpoint")
    train.add_argument("--cell", default="lstm", choices=("rnn_tanh", "rnn_relu", "lstm", "gru"))
    train.add_argument("--layers", type=_positive, default=2)
    train.add_argument("--hidden", type=_positive, default=384, help="units per layer")
    train.add_argument("--embedding", type=_positive, default=64, help="embedding width")
    train.add_argument("--dropout", type=_share, default=0.3)
    train.add_argument("--batch-size", type=_positive, default=32, help="parallel streams")
    train.add_argument(
        "--chunk", type=_positive, default=128, help="steps through which gradients flow"
    )
    train.add_argument("--epochs", type=_positive, default=20)
    train.add_argument(
        "--learning-rate", type=float, default=2e-3, help="peak; decays along half a cosine to 0"
    )
    train.add_argument("--warmup", type=int, default=100, help="updates until the peak")
    train.add_argument("--weight-decay", type=float, default=0.01)
    train.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    train.add_argument(
        "--validation", type=_share, default=0.1, help="share of the text's end held out"
    )
    train.add_argument(
        "--sample-every",
        type=int,
        default=0,
        help="updates between samples; 0: with each validation",
    )
    train.add_argument(
        "--start-token", metavar="TOKEN", help="noted for convert, as are end tokens"
    )
    train.add_argument("--end-token", action="append", default=[], metavar="TOKEN")
    train.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--resume", action="store_true", help="go on after the last full epoch")
    train.set_defaults(run=_train)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint to a model to be served",
        description="Read a trained recurrent language model, build its graphs, prove that they "
        "compute the same, and add a version of it to a model repository.",
    )
    _add_checkpoint(convert)
    convert.add_argument(
        "--output", required=True, metavar="DIR", help="model repository to add a version to"
    )
    convert.add_argument(
        "--name", metavar="NAME", help="name of the model (default: the checkpoint's own name)"
    )
    convert.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="arithmetic of the engine's graph (default: fp32); others are compared with fp32",
    )
    convert.add_argument(
        "--device",
        choices=("cuda",),
        help="also write the graphs that a server runs on such a device (not in int8)",
    )
    convert.add_argument(
        "--evaluate",
        metavar="FILE",
        help="report the perplexity of this text, before and after where the precision is not fp32",
    )
    convert.add_argument(
        "--reference",
        metavar="FILE",
        help="JSON of reference outputs that prove the reading: fixed_ids with logprobs, "
        "prompt_ids with greedy_ids",
    )
    convert.set_defaults(run=_convert)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what a checkpoint is, what is missing, and the command that converts it",
    )
    _add_checkpoint(inspect)
    inspect.set_defaults(run=_inspect)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="nats and bits per character and perplexity of a text",
        description="Feed a text of any length to a model, with the state carried from end to "
        "end, and report what it costs.",
    )
    _add_checkpoint(evaluate, "a checkpoint as for convert, or the folder of an exported model")
    evaluate.add_argument("text", metavar="TEXT", help="UTF-8 text file")
    evaluate.set_defaults(run=_evaluate)


def _add_checkpoint(
    command: argparse.ArgumentParser,
    what: str = "file or folder; `unrolled-export inspect` says what it is",
) -> None:
    """What every command that reads a checkpoint takes."""
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=what)
    command.add_argument(
        "--vocab",
        metavar="FILE",
        help="tokens: a JSON list in id order, a JSON map of tokens and ids, a text file of one "
        "token a line (or token, tab and id) or of all characters in one line, a list or map in a "
        "pickle, torch.save or .npy file, a tokenizer.json or a SentencePiece model (default: the "
        "checkpoint's own)",
    )
    command.add_argument(
        "--start-token",
        metavar="TOKEN",
        help="fed where an empty session draws: a token (\\n and \\t are understood) or #ID",
    )
    command.add_argument(
        "--end-token",
        action="append",
        default=[],
        metavar="TOKEN",
        help="ends a completion when it is drawn; may be repeated",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what the checkpoint does not tell, such as nonlinearity=tanh; may be repeated; "
        f"errors say which is needed. All keys, which export/README.md explains: {keys()}",
    )
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled objects as well. Loaded the usual way, a pickle may run any code that "
        "whoever made it wants; it is read here by a reader that imports and calls nothing of it, "
        "but take such files only from people you trust",
    )


def _convert(arguments: argparse.Namespace) -> int:
    with _extra("converting", "export"):
        from unrolled_export.convert import convert
    return convert(arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    with _extra("inspecting", "export"):
        from unrolled_export.inspection import inspect
    return inspect(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    with _extra("evaluating", "export"):
        from unrolled_export.evaluate import evaluate
    return evaluate(arguments)


def _train(arguments: argparse.Namespace) -> int:
    with _extra("training", "train"):
        from unrolled_export.training.command import train
    return train(arguments)


@contextmanager
def _extra(what: str, extra: str) -> Iterator[None]:
    """Imports of what an extra installs, which may be missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} needs {error.name}: pip install '.[{extra}]'") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


if __name__ == "__main__":
    sys.exit(main())
