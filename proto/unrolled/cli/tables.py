"""Tables and values as text for a terminal, free of control characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from unrolled.v1.completion_pb2 import TokenLogprob


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """Lines of aligned columns; those whose index is in `right` are flush right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def logprob_table(tokens: Sequence[TokenLogprob]) -> str:
    """One line for each token: its log-probability in nats, and the likeliest where asked for."""
    rows = [
        (
            quoted(token.token),
            f"{token.logprob:.3f}" if token.HasField("logprob") else "-",
            "  ".join(f"{quoted(other.token)} {other.logprob:.3f}" for other in token.top),
        )
        for token in tokens
    ]
    likeliest = "LIKELIEST" if any(token.top for token in tokens) else ""
    return table(("TOKEN", "LOGPROB", likeliest), rows, right=(1,))


def quoted(token: bytes) -> str:
    """A token in quotes, with escapes; as bytes where it is not whole characters."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def plain(text: str) -> str:
    """Text of somebody else's on one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def enum_name(message: Message, field: str, prefix: str) -> str:
    """A field's value without its prefix, in lower case; its number where this release lacks it."""
    number: int = getattr(message, field)
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    known = enum.values_by_number.get(number) if enum else None
    return known.name.removeprefix(prefix).lower().replace("_", " ") if known else str(number)


def json_help(each: str) -> str:
    """What `--json` is said to do."""
    return f"print {each} as a line of JSON: ProtoJSON, with the contract's own field names"


def json_line(message: Message) -> str:
    """A message as ProtoJSON on one line: names as in the .proto, 64-bit integers as strings."""
    return MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
    )
