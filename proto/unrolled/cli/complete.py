"""unrolled complete: a prompt in, a completion out."""

from __future__ import annotations

import argparse
import sys

from unrolled import Client, CompletionStream, TokenLogprob
from unrolled.cli.lines import told
from unrolled.cli.options import add_completion_options, completion_options, int32, int64, uint64
from unrolled.cli.output import Output, to_terminal
from unrolled.cli.problems import Problem
from unrolled.cli.served import only_model
from unrolled.cli.tables import json_help, json_line, logprob_table
from unrolled.v1.completion_pb2 import CompleteEvent


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "complete",
        parents=[shared],
        allow_abbrev=False,
        help="complete a prompt",
        description="Prints the prompt and its completion as it is generated. Into a pipe or a"
        " file it goes unchanged; on a terminal a line break follows.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="told exactly as it is; - or nothing: standard input, unless that is a terminal",
    )
    parser.add_argument("--model", help="NAME or NAME/VERSION; not needed where one is served")
    parser.add_argument("--session", metavar="NAME", help="continue and advance this session")
    add_completion_options(parser)
    parser.add_argument("--seed", type=uint64, metavar="N", help="draw the same again")
    parser.add_argument(
        "--logprobs",
        type=int32,
        metavar="N",
        help="log-probabilities of the drawn tokens and the N likeliest, on standard error",
    )
    parser.add_argument(
        "--request-id",
        metavar="ID",
        help="name of this turn of the session: repeating the command gives the same answer again",
    )
    parser.add_argument(
        "--expected-position",
        type=int64,
        metavar="N",
        help="refuse unless the session stands at this many tokens",
    )
    parser.add_argument("--no-echo", action="store_true", help="do not print the prompt")
    parser.add_argument("--json", action="store_true", help=json_help("each event"))


def run(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.expected_position is not None and not arguments.session:
        raise Problem("--expected-position is of a session: --session names it", 2)
    prompt = told(arguments.prompt)
    model = arguments.model
    if not model and not arguments.session:
        model = only_model(client)
    options = completion_options(arguments)
    options["seed"] = arguments.seed
    options["logprobs"] = arguments.logprobs
    options["expected_position"] = arguments.expected_position
    options["request_id"] = arguments.request_id
    with client.stream(prompt or None, model=model, session=arguments.session, **options) as stream:
        if arguments.json:
            _print_events(stream)
        else:
            _print_text("" if arguments.no_echo else prompt, stream)


def _print_events(stream: CompletionStream) -> None:
    for delta in stream:
        print(json_line(CompleteEvent(delta=delta)), flush=True)
    print(json_line(CompleteEvent(outcome=stream.outcome)), flush=True)


def _print_text(prompt: str, stream: CompletionStream) -> None:
    output = Output()
    logprobs: list[TokenLogprob] = []
    # The prompt waits for the first answer, so that a refused turn prints nothing.
    waiting = prompt
    for delta in stream:
        output.write(waiting + delta.text)
        waiting = ""
        logprobs.extend(delta.logprobs)
    output.write(waiting)
    if to_terminal():
        output.end_line()
    if logprobs:
        print(logprob_table(logprobs), file=sys.stderr)
