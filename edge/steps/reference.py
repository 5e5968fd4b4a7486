"""The steps as the Markdown of `docs/model-package.md`: printed from the table and the docstrings.

A test holds the document to it, so a step cannot change without its documentation.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edge.steps.table import POSTPROCESSING, PREPROCESSING, Entry, parameters_of


def steps_markdown() -> str:
    """Every step: what it does, what it works on, its parameters with what is allowed and their defaults."""
    lines = ["## Preprocessing steps", ""]
    for (name, version), entry in PREPROCESSING.items():
        lines += _step(name, version, entry)
    lines += ["## Postprocessing steps", ""]
    for (name, version), entry in POSTPROCESSING.items():
        lines += _step(name, version, entry)
    return "\n".join(lines).strip()


def _step(name: str, version: int, entry: Entry) -> Iterator[str]:
    description, meanings = _docstring(entry)
    facts = [f"Version {version}. Works on: {' or '.join(sorted(entry.on))}."]
    facts += [f"Needs {fact} from a step before it." for fact in entry.needs]
    yield f"### `{name}`"
    yield ""
    yield description
    yield ""
    yield " ".join(facts)
    yield ""
    schema = parameters_of(entry).model_json_schema()
    if properties := schema.get("properties"):
        yield "| parameter | default | allowed | meaning |"
        yield "|---|---|---|---|"
        for parameter, allowed in properties.items():
            default = "must be given"
            if parameter not in schema.get("required", ()):
                default = "not given" if allowed["default"] is None else f"`{allowed['default']}`"
            yield f"| `{parameter}` | {default} | {_allowed(allowed)} | {meanings[parameter]} |"
        yield ""


def _docstring(entry: Entry) -> tuple[str, dict[str, str]]:
    """The description (all paragraphs before the sections), and the meaning of each argument."""
    text = inspect.cleandoc(entry.function.__doc__ or "")
    before, _, rest = text.partition("\n\nArgs:\n")
    arguments = rest.partition("\n\nRaises:")[0]
    if not rest:
        before = text.partition("\n\nRaises:")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    return before, {name: " ".join(meaning.split()) for name, meaning in found}


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a parameter takes, in words, from its JSON Schema."""
    match schema:
        case {"anyOf": [*kinds]}:
            return " or ".join(_allowed(kind) for kind in kinds if kind.get("type") != "null")
        case {"enum": [*values]}:
            return " or ".join(f"`{value}`" for value in values)
        case {"type": "array", "prefixItems": [first, *others]}:
            return f"{1 + len(others)} of: {_allowed(first)}"
        case {"type": "array", "items": items}:
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            count = f"{least} to {most}" if most is not None else f"{least} or more"
            return f"{count} of: {_allowed(items)}"
        case {"type": "object", "patternProperties": values}:
            return "for each name: " + " or ".join(_allowed(value) for value in values.values())
        case {"type": "integer" | "number"}:
            word = "a whole number" if schema["type"] == "integer" else "a number"
            if "exclusiveMinimum" in schema:
                return f"{word} above {schema['exclusiveMinimum']:g}"
            low, high = schema.get("minimum"), schema.get("maximum")
            return word if low is None or high is None else f"{word}, {low:.9g} to {high:.9g}"
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "string", "pattern": _}:
            return "a name"
        case {"examples": [*examples]}:
            return "such as " + " or ".join(f"`{example}`" for example in examples)
    raise ValueError(f"no words for {schema}")
