"""unrolled models: what is served."""

from __future__ import annotations

import argparse

from unrolled import Client, Model
from unrolled.cli.tables import enum_name, json_help, json_line, plain, table

_HEADER = ("MODEL", "STATUS", "CELL", "LAYERS", "PARAMETERS", "VOCABULARY", "STATE")
_UNITS = {
    "character": "characters",
    "byte": "bytes",
    "word": "words",
    "tokenizer": "pieces",
    "sentencepiece": "pieces",
}


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "models", parents=[shared], allow_abbrev=False, help="list what is served"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "name", nargs="?", metavar="MODEL", help="NAME or NAME/VERSION: this one alone"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"{json_help('each model')}; long lists have no vocabularies' tokens, MODEL has",
    )


def run(client: Client, arguments: argparse.Namespace) -> None:
    models = [client.model(arguments.name)] if arguments.name else client.models()
    if arguments.json:
        for model in models:
            print(json_line(model))
        return
    print(table(_HEADER, map(_row, models), right=(4, 6)))
    for model in models:
        if model.status == Model.STATUS_FAILED:
            print(f"{_name(model)} failed: {plain(model.status_detail)}")


def _row(model: Model) -> tuple[str, ...]:
    return (
        _name(model),
        enum_name(model, "status", "STATUS_"),
        enum_name(model, "cell", "CELL_"),
        _layers(model),
        f"{model.parameters:,}",
        _vocabulary(model),
        f"{model.state_bytes:,} B",
    )


def _name(model: Model) -> str:
    return plain(f"{model.name}/{model.version}")


def _layers(model: Model) -> str:
    """2 x 512 for equal layers, 512 + 256 for others; 512>128 for a projected one."""
    widths = [
        f"{layer.hidden_size}>{layer.projection_size}"
        if layer.projection_size
        else str(layer.hidden_size)
        for layer in model.layers
    ]
    if len(set(widths)) == 1:
        return f"{len(widths)} x {widths[0]}"
    return " + ".join(widths)


def _vocabulary(model: Model) -> str:
    kind = enum_name(model.vocabulary, "kind", "KIND_")
    return f"{model.vocabulary.size:,} {_UNITS.get(kind, 'tokens')}"
