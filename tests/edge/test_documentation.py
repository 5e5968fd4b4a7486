"""The documents say what the code does."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from edge.commands.daemon import Role
from edge.commands.study import State
from edge.config import effective, parse
from edge.documents import documents, replace_block
from edge.exit_codes import MEANING, ExitCode, table
from edge.journal_view import STATES
from edge.options import TABLES, Settings
from edge.presence import ROLES
from edge.reference import allowed, example_toml, options, told, toml_value
from edge.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_what_is_printed_from_the_code_stands_in_the_documents() -> None:
    for page, content in documents(DOCS).items():
        assert page.read_text() == content, f"{page.name} is old: run `python -m edge.documents docs`"


def test_the_options_of_the_document_are_those_of_the_code_with_their_defaults() -> None:
    section, found = "", {}
    for line in (DOCS / "configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"### `\[+(\w+)\]+`", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \| (?:`(.*?)`|must be given) \| (.*?) \| ", line):
            found[f"{section}.{row[1]}"] = (row[2], row[3])
    expected = {}
    for key, field in options():
        default = None if field.is_required() else toml_value(field.default)
        expected[key.replace("[]", "")] = (default, allowed(field))
    assert found.keys() == expected.keys()
    for key, (default, words) in expected.items():
        assert found[key][0] == default, key
        assert found[key][1].startswith(words), key


def test_every_option_is_explained_and_every_limit_has_a_reason() -> None:
    for key, field in options():
        assert len(told(field).text) > 10, key
        if key.startswith("limits."):
            assert told(field).reason, key


def test_the_example_file_is_the_defaults_and_names_every_option() -> None:
    text = (DOCS / "insitu.toml").read_text()
    assert text == example_toml()
    assert parse(text.encode(), "insitu.toml") == Settings()
    with_peer = re.sub(r"(?m)^#(?! )", "", text)
    data = tomllib.loads(with_peer)
    named = {f"{section}.{name}" for section in data if section not in TABLES for name in data[section]}
    named |= {f"{section}[].{name}" for section in TABLES for name in data[section][0]}
    assert named == {key for key, _ in options()}
    settings = parse(with_peer.encode(), "insitu.toml")
    assert settings.peers[0].name == "PACS"
    assert effective(settings) | {section: [] for section in TABLES} == effective(Settings())


def test_the_least_useful_example_of_the_document_is_a_configuration() -> None:
    text = (DOCS / "configuration.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert parse(block.encode(), "example").peers[0].receives_results


def test_the_exit_statuses_of_the_document_are_those_of_the_code() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| (.*) \|$", (DOCS / "cli.md").read_text())
    assert rows == [(str(code.value), MEANING[code]) for code in ExitCode]
    assert all(f"{code.value}  {MEANING[code]}" in table() for code in ExitCode)


def test_the_roles_and_states_of_the_command_line_are_those_of_the_daemon() -> None:
    assert tuple(role.value for role in Role) == ROLES
    assert get_args(State) == STATES


def test_the_version_is_that_of_the_package() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_a_document_without_the_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="the document lacks the line"):
        replace_block("text", "block")
