"""The settings as the pages list them, and as the readers ask for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from unrolled_export.__main__ import main
from unrolled_export.readers import Settings
from unrolled_export.setting_keys import SETTINGS

EXPORT = Path(__file__).parents[2] / "export"
README = (EXPORT / "README.md").read_text()


def listed() -> list[list[str]]:
    """The cells of the table's rows."""
    (table,) = re.findall(r"^\| key \| values .*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def test_the_page_lists_every_setting() -> None:
    """No reader can ask for another: `Settings` refuses it, in every test of that reader."""
    assert listed() == [
        [
            f"`{setting.key}`",
            setting.values[0]
            if setting.is_free
            else ", ".join(f"`{value}`" for value in setting.values),
            setting.says,
            setting.needed,
        ]
        for setting in SETTINGS
    ]


@pytest.mark.parametrize("key", ["nonlinearities", "norm_", "NORM", "afterthought", "order_"])
def test_a_key_that_no_page_lists_is_never_asked_for(key: str) -> None:
    with pytest.raises(LookupError, match=key):
        Settings().text(key)


def test_nor_is_a_choice() -> None:
    Settings().choice("nonlinearity", ("tanh", "relu"))
    Settings().choice("head_activation.fc1", ("tanh", "relu"))
    Settings().choice("after_batch_normalization_1", ("lstm_1", "lstm_2"))
    with pytest.raises(LookupError, match="nonlinearity with tanh, elu"):
        Settings().choice("nonlinearity", ("tanh", "elu"))


def test_every_setting_is_asked_for() -> None:
    """Somewhere in the code that reads checkpoints, by its name."""
    package = EXPORT / "unrolled_export"
    code = "".join(
        file.read_text() for file in package.rglob("*.py") if file.name != "setting_keys.py"
    )
    for setting in SETTINGS:
        assert re.search(rf'"{setting.key.removesuffix("NORM")}[{{"]', code), setting.key


def test_the_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert {setting.key for setting in SETTINGS} <= set(words)
