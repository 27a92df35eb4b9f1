"""unrolled sessions: list, create, show, fork, rewind, export, import and delete them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from unrolled import Client, NotFound, Session
from unrolled.cli.options import uint64
from unrolled.cli.problems import Problem, explain
from unrolled.cli.served import only_model
from unrolled.cli.tables import json_help, json_line, table

_HEADER = ("SESSION", "MODEL", "POSITION", "STATE", "USED", "EXPIRES")


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "sessions",
        parents=[shared],
        allow_abbrev=False,
        help="list, create, show, fork, rewind, export, import and delete sessions",
        description="Without an action: lists the sessions alive.",
    )
    _add_listing(parser)
    parser.set_defaults(run=_list, model=None, json=False)
    actions = parser.add_subparsers(metavar="ACTION")

    def action(name: str, run: Callable[..., None], purpose: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, parents=[shared], allow_abbrev=False, help=purpose)
        added.set_defaults(run=run)
        return added

    _add_listing(action("list", _list, "those alive; the default"))
    _add_creation(action("create", _create, "a new one; prints its name"))
    _add_showing(action("show", _show, "what the server says of one"))
    _add_forking(action("fork", _fork, "a new one with the same past; prints its name"))
    _add_checkpoint(action("checkpoint", _checkpoint, "name the place where one stands"))
    _add_rewind(action("rewind", _rewind, "take one to a checkpoint, or its last turn back"))
    _add_export(action("export", _export, "a sealed snapshot of one, into a file"))
    _add_import(action("import", _import, "a new one from such a file; prints its name"))
    _add_deletion(action("delete", _delete, "end them"))


# An action's defaults would replace what was given before its name: hence SUPPRESS.


def _add_listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=argparse.SUPPRESS, help="only those of this model")
    _add_json(parser)


def _add_creation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=argparse.SUPPRESS,
        help="NAME or NAME/VERSION; not needed where one is served",
    )
    parser.add_argument("--seed", type=uint64, metavar="N", help="key of its random draws")
    _add_keeping(parser)
    _add_json(parser)


def _add_showing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SESSION")
    _add_json(parser)


def _add_forking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument("--seed", type=uint64, metavar="N", help="draw otherwise than its parent")
    _add_json(parser)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a name; one that it has moves")
    parser.add_argument("--delete", action="store_true", help="delete it instead")
    _add_json(parser)


def _add_rewind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="without one: its last turn back"
    )
    _add_json(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="a file that is not there yet"
    )
    parser.add_argument(
        "--ttl", type=_seconds, metavar="SECONDS", help="can be imported for this long; else always"
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    _add_keeping(parser)
    _add_json(parser)


def _add_deletion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="SESSION", nargs="+")


def _add_keeping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idle-ttl", type=_seconds, metavar="SECONDS", help="ends after this long without use"
    )
    parser.add_argument(
        "--max-age", type=_seconds, metavar="SECONDS", help="ends after this long, used or not"
    )
    parser.add_argument(
        "--undo", action="store_true", help="keep where it stood before its last turn, for rewind"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help=json_help("each session"),
    )


def _seconds(text: str) -> timedelta:
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None


def _list(client: Client, arguments: argparse.Namespace) -> None:
    sessions = client.sessions(arguments.model)
    if arguments.json:
        for session in sessions:
            print(json_line(session.info))
    else:
        print(table(_HEADER, map(_row, sessions), right=(2, 3)))


def _create(client: Client, arguments: argparse.Namespace) -> None:
    model = arguments.model or only_model(client)
    session = client.create_session(
        model,
        seed=arguments.seed,
        idle_ttl=arguments.idle_ttl,
        max_age=arguments.max_age,
        undo=arguments.undo,
    )
    _print_name(session, arguments)


def _show(client: Client, arguments: argparse.Namespace) -> None:
    session = client.session(arguments.name)
    if arguments.json:
        print(json_line(session.info))
        return
    info = session.info
    facts = (
        ("session", info.name),
        ("model", info.model),
        ("fingerprint", info.fingerprint),
        ("position", f"{info.position:,} tokens"),
        ("seed", str(info.seed)),
        ("state", f"{info.state_bytes:,} B"),
        ("created", _time(info.create_time)),
        ("used", _time(info.use_time)),
        ("expires", _expiry(session)),
        *((("ends", _time(info.end_time)),) if info.HasField("end_time") else ()),
        *(("checkpoint", f"{mark.id} at {mark.position:,} tokens") for mark in info.checkpoints),
        *_undo(session),
    )
    for name, value in facts:
        print(f"{name:<12} {value}")


def _undo(session: Session) -> list[tuple[str, str]]:
    """What there is to say of taking the last turn back."""
    if not session.info.undo:
        return []
    if not session.info.HasField("undo_position"):
        return [("undo", "no turn to take back")]
    return [("undo", f"to {session.info.undo_position:,} tokens")]


def _fork(client: Client, arguments: argparse.Namespace) -> None:
    _print_name(client.session(arguments.name).fork(arguments.seed), arguments)


def _checkpoint(client: Client, arguments: argparse.Namespace) -> None:
    session = client.session(arguments.name)
    if arguments.delete:
        session.delete_checkpoint(arguments.checkpoint)
    else:
        session.checkpoint(arguments.checkpoint)
    _print_position(session, arguments)


def _rewind(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.checkpoint == "":
        raise Problem("CHECKPOINT is empty; left out, the last turn is taken back", 2)
    session = client.session(arguments.name)
    session.rewind(arguments.checkpoint)
    _print_position(session, arguments)


def _export(client: Client, arguments: argparse.Namespace) -> None:
    snapshot = client.session(arguments.name).export(ttl=arguments.ttl)
    # Who has the file can go on from it.
    with open(arguments.output, "xb", opener=_private) as file:
        file.write(snapshot)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _import(client: Client, arguments: argparse.Namespace) -> None:
    snapshot = arguments.file.read_bytes()
    session = client.import_session(
        snapshot, idle_ttl=arguments.idle_ttl, max_age=arguments.max_age, undo=arguments.undo
    )
    _print_name(session, arguments)


def _delete(client: Client, arguments: argparse.Namespace) -> None:
    unknown = []
    for name in arguments.names:
        try:
            client.delete_session(name)
        except NotFound as error:
            unknown.append(explain(error, arguments.server))
    if unknown:
        raise Problem("; ".join(unknown), 1)


def _print_name(session: Session, arguments: argparse.Namespace) -> None:
    print(json_line(session.info) if arguments.json else session.name)


def _print_position(session: Session, arguments: argparse.Namespace) -> None:
    print(json_line(session.info) if arguments.json else f"position {session.position:,}")


def _row(session: Session) -> tuple[str, ...]:
    return (
        session.name,
        session.model,
        f"{session.position:,}",
        f"{session.info.state_bytes:,} B",
        _time(session.info.use_time),
        _expiry(session),
    )


def _expiry(session: Session) -> str:
    return _time(session.info.expire_time) if session.info.HasField("expire_time") else "never"


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime().isoformat(sep=" ", timespec="seconds") + "Z"
