"""unrolled score: how likely a text is."""

from __future__ import annotations

import argparse

from unrolled import Client
from unrolled.cli.lines import told
from unrolled.cli.options import int32
from unrolled.cli.problems import Problem
from unrolled.cli.scores import score_report
from unrolled.cli.served import only_model
from unrolled.cli.tables import json_help, json_line, logprob_table


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "score",
        parents=[shared],
        allow_abbrev=False,
        help="how likely a text is",
        description="Prints how many tokens a text has, its log-probability in nats, the bits that"
        " this is for each of its characters and bytes, and the perplexity per token. The first"
        " token has no probability where nothing comes before it, and counts for nothing then.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="scored exactly as it is; - or nothing: standard input, unless that is a terminal",
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--model", help="NAME or NAME/VERSION; not needed where one is served")
    begin.add_argument(
        "--session", metavar="NAME", help="as what comes next in this session, which stays there"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="a line for each token, with its log-probability"
    )
    parser.add_argument(
        "--logprobs", type=int32, metavar="N", help="the same, with the N likeliest at each place"
    )
    parser.add_argument("--json", action="store_true", help=json_help("the answer"))


def run(client: Client, arguments: argparse.Namespace) -> None:
    text = told(arguments.text)
    if not text:
        raise Problem("there is no text to score", 2)
    model = arguments.model
    if not model and not arguments.session:
        model = only_model(client)
    each = arguments.tokens or arguments.logprobs is not None
    # The report has to count tokens; the answer as JSON may do without, and is short then.
    logprobs = (arguments.logprobs or 0) if each or not arguments.json else None
    score = client.score(text, model=model, session=arguments.session, logprobs=logprobs)
    if arguments.json:
        print(json_line(score))
        return
    print(score_report(text, score))
    if each:
        print(logprob_table(score.tokens))
