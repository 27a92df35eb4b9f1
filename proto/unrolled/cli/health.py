"""unrolled health: whether a server serves, as an exit status. For containers and scripts."""

from __future__ import annotations

import argparse
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from unrolled import Client, DeadlineExceeded, NotFound
from unrolled.cli.options import seconds
from unrolled.cli.problems import Problem
from unrolled.cli.tables import enum_name
from unrolled.connection import deadline
from unrolled.errors import translated

_TIMEOUT = 5.0


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "health",
        parents=[shared],
        allow_abbrev=False,
        help="exit status 0 if the server serves",
        description="Asks grpc.health.v1.Health. The exit status is 0 for SERVING and 1 for any"
        " other answer, or for none.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--service",
        default="",
        metavar="NAME",
        help="ask about one service, such as unrolled.v1.CompletionService (default: the server)",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=_TIMEOUT,
        metavar="TIME",
        help=f"how long to wait for an answer, such as 500ms or 2s ({_TIMEOUT:g}s)",
    )


def run(client: Client, arguments: argparse.Namespace) -> None:
    asked = f"{arguments.service} at {arguments.server}" if arguments.service else arguments.server
    try:
        answer = _check(client.channel, arguments.service, arguments.timeout)
    except NotFound:
        raise Problem(f"{arguments.server} knows no service {arguments.service}", 1) from None
    except DeadlineExceeded:
        raise Problem(f"{asked} did not answer in {arguments.timeout:g} s", 1) from None
    said = f"{asked} is {enum_name(answer, 'status', '')}"
    if answer.status != HealthCheckResponse.SERVING:
        raise Problem(said, 1)
    print(said)


def _check(channel: grpc.Channel, service: str, timeout: float) -> HealthCheckResponse:
    # Its published types know no methods.
    stub: Any = HealthStub(channel)
    with translated():
        answer: HealthCheckResponse = stub.Check(
            HealthCheckRequest(service=service), deadline(timeout)
        )
    return answer
