"""The pages: their links lead somewhere, their examples run, their flags are the server's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import unrolled
from support.sealed import key_file
from support.server import running_server
from unrolled_export.__main__ import main as export_main

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)
CLIENT_PAGE = ROOT / "proto" / "README.md"
OPERATORS_PAGE = ROOT / "deploy" / "README.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def is_broken(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    return not target.exists() or (bool(anchor) and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(FENCED.sub("", page.read_text()))
    assert [link for link in links if is_broken(page, link)] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n\n```sh\n# no heading\n```\n")
    assert anchors(page) == {"a-b-c"}
    assert not is_broken(page, "#a-b-c")
    assert is_broken(page, "#no-heading")
    assert is_broken(page, "other.md")


def examples(page: Path) -> str:
    """All Python of a page, each line where it is in the page."""
    text, lines = page.read_text(), [""] * page.read_text().count("\n")
    for block in FENCED.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the model that the examples name, with keys of snapshots."""
    models, folder = tmp_path_factory.mktemp("models"), ROOT / "export" / "models"
    command = ["convert", str(folder / "shakespeare-lstm"), "--output", str(models)]
    assert export_main(command) == 0
    keys = key_file(tmp_path_factory.mktemp("keys") / "keys", "a")
    with running_server(models, "--seal-key-file", str(keys)) as server:
        yield server.address


@pytest.mark.parametrize("page", [ROOT / "README.md", CLIENT_PAGE], ids=["first", "client"])
def test_the_examples_run(page: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = examples(page).replace("127.0.0.1:50051", address)
    with unrolled.Client(address) as client:
        names: dict[str, Any] = {"unrolled": unrolled, "client": client}
        exec(compile(code, page, "exec"), names)  # noqa: S102
    assert len(capsys.readouterr().out) > 100


def test_the_table_has_the_flags_of_the_server() -> None:
    command = [str(Path(sys.executable).with_name("unrolled-server")), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    flags = re.findall(r"^  (--[\w-]+)", shown, re.MULTILINE)
    section = OPERATORS_PAGE.read_text().partition("## Flags")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
    assert sorted(re.findall(r"--[\w-]+", " ".join(cells))) == sorted({*flags} - {"--version"})
