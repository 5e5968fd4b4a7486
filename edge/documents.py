"""The parts of `docs/` that are printed from the code; a test holds the documents to them.

`python -m edge.documents docs` writes them anew: `insitu.toml`, `manifest.schema.json`, and what
stands between the marks in `configuration.md`, `cli.md`, `model-package.md`,
`conformance-statement.md` and `operations.md`.
"""

import sys
from pathlib import Path
from typing import Any, Final

import typer
from pydantic.fields import FieldInfo

from edge.cli import build
from edge.conformance import conformance_markdown
from edge.operations import operations_markdown
from edge.options import TABLES
from edge.reference import allowed, example_toml, sections, sentence, told, toml_value, unit
from edge.steps.reference import steps_markdown
from model_store.manifest import json_schema

BEGIN: Final = "<!-- begin: printed by `python -m edge.documents docs` -->"
END: Final = "<!-- end -->"


def documents(directory: Path) -> dict[Path, str]:
    """Each document below `directory` that holds something printed, as it must be."""
    pages = {
        "configuration.md": options_markdown(),
        "cli.md": verbs_markdown(),
        "model-package.md": steps_markdown(),
        "conformance-statement.md": conformance_markdown(),
        "operations.md": operations_markdown(),
    }
    printed = {
        directory / name: replace_block((directory / name).read_text(), text) for name, text in pages.items()
    }
    whole = {
        directory / "insitu.toml": example_toml(),
        directory / "manifest.schema.json": json_schema(),
    }
    return {**whole, **printed}


def options_markdown() -> str:
    """The tables of `docs/configuration.md`."""
    lines = []
    for section, model in sections():
        title = f"[[{section}]]" if section in TABLES else f"[{section}]"
        lines += [f"### `{title}`", "", sentence(model), ""]
        lines += ["| option | default | allowed | meaning; why |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            option = told(field)
            default = "must be given" if field.is_required() else f"`{toml_value(field.default)}`"
            why = f"; {option.reason}" if option.reason else ""
            lines.append(f"| `{name}` | {default} | {_range(name, field)} | {option.text}{why} |")
        lines.append("")
    return "\n".join(lines)


def replace_block(document: str, block: str) -> str:
    """`document` with what stands between the marks `BEGIN` and `END` replaced by `block`.

    Raises:
        ValueError: the document does not have both marks.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the line {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"


def verbs_markdown() -> str:
    """The help of every verb, as `docs/cli.md` has it."""
    root = typer.main.get_command(build())
    lines = []
    for words, text in _helps(root, ("insitu",), None):
        lines += [f"### `{' '.join(words)}`", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def _helps(command: Any, words: tuple[str, ...], parent: Any) -> list[tuple[tuple[str, ...], str]]:  # noqa: ANN401
    """The help of `command` and of those below it; typer does not publish their types."""
    context = command.context_class(
        command, info_name=words[-1], parent=parent, terminal_width=80, **command.context_settings
    )
    found = [(words, str(command.get_help(context)))]
    for name, below in getattr(command, "commands", {}).items():
        found += _helps(below, (*words, name), context)
    return found


def _range(name: str, field: FieldInfo) -> str:
    return " ".join(part for part in (allowed(field), unit(name)) if part)


if __name__ == "__main__":
    for page, content in documents(Path(sys.argv[1])).items():
        page.write_text(content)
