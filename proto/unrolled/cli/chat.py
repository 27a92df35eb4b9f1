"""unrolled chat: a session that carries on, line by line."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shlex
import sys
from collections.abc import Callable

from unrolled import (
    Cancelled,
    Client,
    CompletionOptions,
    Conversation,
    NotFound,
    Session,
    UnrolledError,
    error_from_status,
)
from unrolled.cli.interrupts import on_interrupt
from unrolled.cli.lines import line_reader, typed_input
from unrolled.cli.options import add_completion_options, completion_options, uint64
from unrolled.cli.output import Output
from unrolled.cli.problems import Problem, explain
from unrolled.cli.scores import score_report
from unrolled.cli.served import only_model
from unrolled.cli.tables import logprob_table
from unrolled.client import DEFAULT_TARGET

HELP = """\
A line is told to the session, and its continuation comes. Ctrl-C ends the continuation: what was
shown of it stands. A line that shall begin with a slash begins with two.

/fork [SEED]   go on in a copy of the session, which draws alike unless given another seed
/undo          take the last turn back, once after each
/checkpoint ID give the place where the session stands a name
/rewind ID     go to the place of this name
/score TEXT    how likely the text would be next; the session stays where it is
/session       its name and position
/help          this
/quit          leave; so does the end of input (Ctrl-D)"""


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "chat",
        parents=[shared],
        allow_abbrev=False,
        help="a session that carries on, line by line",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--model", help="start a session of NAME or NAME/VERSION")
    begin.add_argument("--session", metavar="NAME", help="resume this session")
    parser.add_argument("--seed", type=uint64, metavar="N", help="seed of a new session")
    add_completion_options(parser)
    parser.add_argument(
        "--no-newline", action="store_true", help="tell lines without the line break after them"
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--keep", action="store_true", help="keep the session at the end (default)")
    end.add_argument("--delete", action="store_true", help="delete it, and the forks made here")


def run(client: Client, arguments: argparse.Namespace) -> None:
    newline = "" if arguments.no_newline else "\n"
    chat = Chat(client, _begin(client, arguments), completion_options(arguments), newline)
    print(f"{chat.where()}; /help lists the commands", file=sys.stderr)
    try:
        _loop(chat, arguments.server)
    finally:
        _end(chat, arguments)


class Chat:
    """The session of a chat, and what lines do to it."""

    def __init__(
        self, client: Client, session: Session, options: CompletionOptions, newline: str
    ) -> None:
        self._client = client
        self._visited = [session]
        self._options = options
        self._newline = newline
        self._output = Output()
        self._commands: dict[str, Callable[[str], None]] = {
            "/fork": self._fork,
            "/undo": self._undo,
            "/checkpoint": self._checkpoint,
            "/rewind": self._rewind,
            "/score": self._score,
            "/session": self._show,
            "/help": self._help,
        }

    @property
    def session(self) -> Session:
        return self._visited[-1]

    def where(self) -> str:
        return f"{self.session.name} of {self.session.model}, position {self.session.position:,}"

    def take(self, line: str) -> bool:
        """Does what a line says; False where it says to leave."""
        if not line.startswith("/") or line.startswith("//"):
            self._turn(line.replace("//", "/", 1) if line.startswith("//") else line)
            return True
        name, _, argument = line.partition(" ")
        if name == "/quit":
            return False
        if name not in self._commands:
            raise Problem(f"there is no command {name}: /help lists those there are", 2)
        self._commands[name](argument)
        return True

    def delete(self) -> None:
        """Deletes the session and those it was forked from here."""
        for session in self._visited:
            with contextlib.suppress(NotFound):
                session.delete()

    def _turn(self, line: str) -> None:
        with self._client.converse(session=self.session.name) as conversation:
            opening = conversation.open(session=self.session.name)
            completion = conversation.complete(line + self._newline, **self._options)
            try:
                with on_interrupt(_stopper(conversation, completion)):
                    self._show_events(conversation, {opening, completion})
            except Cancelled:
                raise Problem(
                    "the turn was given up; /session tells where that left the session", 1
                ) from None
            finally:
                self._output.end_line()

    def _show_events(self, conversation: Conversation, commands: set[str]) -> None:
        for event in conversation:
            if event.HasField("delta"):
                self._output.write(event.delta.text)
            elif event.HasField("outcome"):
                conversation.close()
            # A stop that comes too late may fail, which is nobody's concern.
            elif event.HasField("error") and event.command_id in commands:
                raise error_from_status(event.error)

    def _fork(self, argument: str) -> None:
        try:
            seed = uint64(argument) if argument else None
        except argparse.ArgumentTypeError as error:
            raise Problem(f"/fork takes a seed: {error}", 2) from None
        parent, child = self.session, self.session.fork(seed)
        self._visited.append(child)
        print(f"{child.name} is a fork of {parent.name}, and is now in use")

    def _undo(self, argument: str) -> None:
        self.session.rewind()
        print(self.where())

    def _checkpoint(self, argument: str) -> None:
        if not argument:
            raise Problem("/checkpoint takes a name", 2)
        self.session.checkpoint(argument)
        print(f"{argument} is position {self.session.position:,}")

    def _rewind(self, argument: str) -> None:
        if not argument:
            raise Problem("/rewind takes a name; /undo takes the last turn back", 2)
        self.session.rewind(argument)
        print(self.where())

    def _score(self, argument: str) -> None:
        if not argument:
            raise Problem("/score takes a text", 2)
        score = self.session.score(argument, logprobs=0)
        print(f"{score_report(argument, score)}\n{logprob_table(score.tokens)}")

    def _show(self, argument: str) -> None:
        self.session.refresh()
        print(self.where())

    def _help(self, argument: str) -> None:
        print(HELP)


def _begin(client: Client, arguments: argparse.Namespace) -> Session:
    if not arguments.session:
        model = arguments.model or only_model(client)
        return client.create_session(model, seed=arguments.seed, undo=True)
    if arguments.seed is not None:
        raise Problem("--seed is for a new session: this one has its own", 2)
    return client.session(arguments.session)


def _end(chat: Chat, arguments: argparse.Namespace) -> None:
    if arguments.delete:
        chat.delete()
        return
    server = [] if arguments.server == DEFAULT_TARGET else ["--server", arguments.server]
    resume = shlex.join(["unrolled", *server, "chat", "--session", chat.session.name])
    print(f"kept {chat.session.name}; resume it with: {resume}", file=sys.stderr)


def _loop(chat: Chat, server: str) -> None:
    """Takes lines to the end of input. Without a terminal the first failure is the end too."""
    interactive = typed_input()
    read = line_reader(typed=interactive)
    while True:
        try:
            line = read()
            if line is None or not chat.take(line):
                return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n/quit or Ctrl-D leaves", file=sys.stderr)
        except (UnrolledError, Problem) as error:
            if not interactive:
                raise
            said = explain(error, server) if isinstance(error, UnrolledError) else str(error)
            print(f"unrolled: {said}", file=sys.stderr)


def _stopper(conversation: Conversation, completion: str) -> Callable[[], None]:
    """What Ctrl-C does: stops the completion, and the next time gives up waiting for that."""
    presses = itertools.count(1)

    def act() -> None:
        if next(presses) > 1:
            conversation.cancel()
            return
        with contextlib.suppress(RuntimeError, UnrolledError):
            conversation.stop(completion)

    return act
