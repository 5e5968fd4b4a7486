"""The options in words: for error messages, `insitu config show|example`, and `edge.documents`."""

import typing
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any, Final, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edge.options import TABLES, Option, Settings

_EXAMPLES: Final[Mapping[str, Mapping[str, str | int]]] = {
    "peer": {"name": "PACS", "ae_title": "PACS", "host": "10.1.2.3", "port": 104},
    "web_client": {"name": "viewer", "token_sha256": "0" * 64},
    "pull": {"sender": "PACS", "modality": "MR", "archive": "PACS"},
}
"""Of the sections of which there may be several: values of the options without a default."""


def options() -> Iterator[tuple[str, FieldInfo]]:
    """Every option: its dotted key (`peer[].port` in a peer) and its field, in file order."""
    for section, model in sections():
        prefix = f"{section}[]" if section in TABLES else section
        for name, field in model.model_fields.items():
            yield f"{prefix}.{name}", field


def told(field: FieldInfo) -> Option:
    """What `field` says for operators."""
    return next(item for item in field.metadata if isinstance(item, Option))


def allowed(field: FieldInfo) -> str:
    """The allowed values of an option, in words."""
    words = told(field).allowed
    if words:
        return words
    if typing.get_origin(field.annotation) is Literal:
        return " or ".join(f'"{value}"' for value in typing.get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    least = next(_number(item.ge) for item in field.metadata if isinstance(item, Ge))
    most = next(_number(item.le) for item in field.metadata if isinstance(item, Le))
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind}, {least} to {most}"


def toml_value(value: object) -> str:
    """`value` as it is written in TOML (texts, numbers, booleans, arrays of them)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text) + '"'


def example_toml() -> str:
    """A configuration file of all options with their defaults, each explained; it reads as the defaults."""
    lines = [
        "# Insitu: every option with its default. An option that is left out has the value given here.",
        "# Check a changed file with `insitu config check`; see all of it with `insitu config show`.",
    ]
    for section, model in sections():
        example = _EXAMPLES.get(section)
        lines += ["", f"# {sentence(model)}"]
        if section == "peer":
            lines += ["# One table [[peer]] for each node; take away each `#` that no space follows."]
        lines += [f"#[[{section}]]" if example else f"[{section}]"]
        for name, field in model.model_fields.items():
            lines += [f"# {line}" for line in wrap(_explained(field), 105)]
            value = (example or {}).get(name, field.default)
            lines += [f"{'#' if example else ''}{name} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def to_toml(data: Mapping[str, Any]) -> str:
    """Plain data of `edge.config.effective` as a configuration file."""
    lines: list[str] = []
    for section, content in data.items():
        for table in content if isinstance(content, list) else [content]:
            lines += ["", f"[[{section}]]" if isinstance(content, list) else f"[{section}]"]
            lines += [f"{name} = {toml_value(value)}" for name, value in table.items()]
    return "\n".join(lines).lstrip("\n") + ("\n" if lines else "")


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section by its name in the file, in file order."""
    for section, field in Settings.model_fields.items():
        name = field.alias or section
        model = TABLES.get(name, field.annotation)
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        yield name, model


def sentence(model: type[BaseModel]) -> str:
    """What a section is for."""
    return " ".join((model.__doc__ or "").split())


def unit(name: str) -> str:
    """The unit that ends an option's name, or nothing."""
    if name.startswith("days_"):
        return "days"
    return {"s": "s", "bytes": "bytes"}.get(name.rpartition("_")[2], "") if "_" in name else ""


def _explained(field: FieldInfo) -> str:
    option = told(field)
    text = option.text[0].upper() + option.text[1:]
    why = f" Why: {option.reason}." if option.reason else ""
    return f"{text} ({allowed(field)}).{why}"


def _number(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 77 digits"  # Python refuses to print the largest ones
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
