"""The configuration file: found, read, checked, and every problem reported at once.

The options themselves are in `edge.options`. Nothing here looks at the disk beyond the
file itself, nor at the network: what must hold at run time is checked where it is used.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from edge.addressing import is_address
from edge.options import MAX_TABLES, TABLES, Settings
from edge.reference import allowed, options, toml_value

DEFAULT_FILE: Final = Path("/etc/insitu/insitu.toml")
VARIABLE: Final = "INSITU_CONFIG"
MAX_FILE_BYTES: Final = 1 << 20
"""1 MiB: 256 peers with a comment each are 0.1 MB; a larger file is some other file."""

Location = tuple[str | int, ...]
"""Where a value stands: ("peer", 1, "port")."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one line for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def find(path: Path | None, environ: Mapping[str, str], default: Path = DEFAULT_FILE) -> Path | None:
    """The file to read: `path`, `$INSITU_CONFIG`, or `default` where it exists; else none.

    Raises:
        ConfigError: a file that was named does not exist.
    """
    for named, source in ((path, "--config"), (environ.get(VARIABLE) or None, f"${VARIABLE}")):
        if named is not None:
            file = Path(named)
            if not file.is_file():
                raise ConfigError([f"{file}: named by {source}, but there is no such file"])
            return file
    return default if default.is_file() else None


def load(path: Path | None, environ: Mapping[str, str], default: Path = DEFAULT_FILE) -> Settings:
    """The settings of the file that `find` finds; the defaults where there is none.

    Raises:
        ConfigError: no such file, unreadable, not TOML, or wrong values (all of them at once).
    """
    file = find(path, environ, default)
    if file is None:
        return Settings()
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error
    return parse(raw, str(file))


def parse(raw: bytes, source: str) -> Settings:
    """The settings in `raw`, a TOML document; `source` names it in the problems.

    Raises:
        ConfigError: see `load`.
    """
    data = _toml(raw, source)
    problems: dict[Location, str] = {}
    try:
        settings = Settings.model_validate(_tuples(data), by_alias=True, by_name=False)
    except ValidationError as error:
        for item in error.errors():
            where = _key_of(item)
            problems.setdefault(where, _problem(where, item, data))
        settings = Settings.model_validate(
            _tuples(_without(data, set(problems))), by_alias=True, by_name=False
        )
    wrong = {_section_key(where) for where in problems}
    lines = [problems[where] for where in sorted(problems, key=_position(data))]
    lines += [item.text for item in contradictions(settings) if not wrong & set(item.keys)]
    lines += [item.text for item in _same_twice(data)]
    if lines:
        raise ConfigError([f"{source}: {line}" for line in lines])
    return settings


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two options that are each allowed and do not go together."""

    keys: tuple[str, ...]
    text: str


def contradictions(settings: Settings) -> tuple[Contradiction, ...]:
    """What is wrong with options taken together."""
    return tuple(_contradictions(settings))


def warnings(settings: Settings) -> tuple[str, ...]:
    """What is allowed, but hardly what was meant; one line each."""
    found = []
    if not any(peer.may_send for peer in settings.peers):
        found.append("no [[peer]] has may_send = true: every association is rejected")
    if not any(peer.receives_results for peer in settings.peers):
        found.append("no [[peer]] has receives_results = true: results are made and held, none is delivered")
    found += [
        f'peer "{peer.name}": host {peer.host} is a name, so its address is not checked; '
        "give accept_from, or say address_check = false"
        for peer in settings.peers
        if peer.may_send and peer.address_check and not peer.accept_from and not is_address(peer.host)
    ]
    web = settings.web
    if (web.port or web.store_port) and not settings.web_clients:
        found.append("web: no [[web_client]] is configured: every request is answered with 401")
    if (web.port or web.store_port) and not web.certificate and not web.host.startswith("127."):
        found.append("web: no certificate: tokens and images go over the network in the clear")
    if not settings.receive.durable:
        found.append("receive.durable is false: a power cut can lose what was acknowledged")
    return tuple(found)


def effective(settings: Settings) -> dict[str, Any]:
    """All options with their values, as plain data, keyed as in the file."""
    return settings.model_dump(mode="json", by_alias=True)


def changed(settings: Settings) -> dict[str, Any]:
    """The options that differ from their defaults, as plain data, keyed as in the file."""
    return settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _toml(raw: bytes, source: str) -> dict[str, Any]:
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError([f"{source}: more than {MAX_FILE_BYTES} bytes: not a configuration file"])
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{source}: line {line}: not UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        said = re.fullmatch(r"(?s)(.*) \(at (.*)\)", str(error))
        what, where = said.groups() if said else (str(error), "the file")
        raise ConfigError([f"{source}: {where}: not TOML: {what}"]) from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; arrays in arrays
        what = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise ConfigError([f"{source}: not TOML that we read: {what}"]) from error


def _contradictions(settings: Settings) -> Iterator[Contradiction]:
    limits, deliver = settings.limits, settings.deliver
    for small, large, values in (
        ("limits.max_associations_per_peer", "limits.max_associations", limits),
        ("deliver.backoff_base_s", "deliver.backoff_max_s", deliver),
    ):
        low, high = (getattr(values, key.partition(".")[2]) for key in (small, large))
        if low > high:
            yield Contradiction(
                (small, large),
                f"{small}: got {toml_value(low)}, allowed at most {large} = {toml_value(high)}",
            )
    yield from _web_contradictions(settings)
    yield from _tls_contradictions(settings)
    names = {peer.name for peer in settings.peers}
    asked = settings.assemble.ask_count_of
    if asked and asked not in names:
        yield Contradiction(
            ("assemble.ask_count_of", "peer"),
            f"assemble.ask_count_of: got {toml_value(asked)}, allowed the name of a [[peer]]",
        )
    for index, rule in enumerate(settings.pulls):
        for key, name in (("sender", rule.sender), ("archive", rule.archive)):
            if name not in names:
                where = f"pull[{index}].{key}"
                yield Contradiction(
                    (where, "peer"), f"{where}: got {toml_value(name)}, allowed the name of a [[peer]]"
                )
    places = settings.directories.model_dump()
    for name, place in places.items():
        for other, outer in places.items():
            if (name > other and place == outer) or (place != outer and place.is_relative_to(outer)):
                yield Contradiction(
                    (f"directories.{name}", f"directories.{other}"),
                    f'directories.{name}: got "{place}", allowed outside of directories.{other} = "{outer}"',
                )


def _tls_contradictions(settings: Settings) -> Iterator[Contradiction]:
    tls = settings.tls
    pairs = [("certificate", "key"), ("key", "certificate")]
    if tls.port:
        pairs.append(("port", "certificate"))
    if tls.port and tls.client_certificates != "none":
        pairs.append(("client_certificates", "ca"))
    for one, other in pairs:
        if getattr(tls, one) and not getattr(tls, other):
            got = toml_value(getattr(tls, one))
            yield Contradiction(
                (f"tls.{one}", f"tls.{other}"),
                f"tls.{one}: is {got}, and tls.{other} is not given; it needs both",
            )
    if tls.port and tls.plain and tls.port == settings.node.port:
        yield Contradiction(
            ("tls.port", "node.port"),
            f"tls.port: got {tls.port}, allowed another than node.port, or tls.plain = false",
        )
    for index, peer in enumerate(settings.peers):
        where = f"peer[{index}]"
        if peer.tls and not tls.ca:
            yield Contradiction(
                (f"{where}.tls", "tls.ca"), f"{where}.tls: is true, and tls.ca is not given; it needs both"
            )
        if peer.certificate_sha256 and (not tls.port or tls.client_certificates == "none"):
            yield Contradiction(
                (f"{where}.certificate_sha256", "tls.port", "tls.client_certificates"),
                f"{where}.certificate_sha256: is given, and no client can show a certificate; "
                'it needs tls.port, and tls.client_certificates = "optional" or "required"',
            )


def _web_contradictions(settings: Settings) -> Iterator[Contradiction]:
    web = settings.web
    for one, other in (("certificate", "key"), ("key", "certificate"), ("client_ca", "certificate")):
        if getattr(web, one) and not getattr(web, other):
            yield Contradiction(
                (f"web.{one}", f"web.{other}"), f"web.{one}: is given, and web.{other} is not; it needs both"
            )
    if web.port and web.port == web.store_port:
        yield Contradiction(
            ("web.port", "web.store_port"),
            f"web.port: got {web.port}, allowed another than web.store_port: two processes listen",
        )
    for index, client in enumerate(settings.web_clients):
        where = f"web_client[{index}]"
        if not client.token_sha256 and not client.certificate_sha256:
            yield Contradiction(
                (where,), f"{where}: has neither token_sha256 nor certificate_sha256, must have one"
            )
        if client.certificate_sha256 and not web.client_ca:
            yield Contradiction(
                (f"{where}.certificate_sha256", "web.client_ca"),
                f"{where}.certificate_sha256: is given, and web.client_ca is not; it needs both",
            )


def _same_twice(data: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What two tables of a kind share; read from the document, so that other problems hide none."""
    for table, key, kind in (
        ("peer", "name", "peer"),
        ("peer", "ae_title", "peer"),
        ("web_client", "name", "client"),
        ("web_client", "token_sha256", "client"),
        ("web_client", "certificate_sha256", "client"),
    ):
        tables = data.get(table)
        seen: dict[str, int] = {}
        for index, each in enumerate(tables[: MAX_TABLES[table]] if isinstance(tables, list) else []):
            value = each.get(key) if isinstance(each, dict) else None
            if not isinstance(value, str) or not value:
                continue
            first = seen.setdefault(value.strip(" "), index)
            if first != index:
                where = f"{table}[{index}].{key}"
                yield Contradiction(
                    (where,),
                    f"{where}: got {toml_value(value)}, which {table}[{first}] has; each {kind} has its own",
                )


def _problem(where: Location, item: ErrorDetails, data: Mapping[str, Any]) -> str:
    key, got = _dotted(where), _at(data, where)
    if item["type"] == "extra_forbidden":
        return f"{key}: no such {'section' if len(where) == 1 else 'option'}{_meant(where)}"
    field = _field(where)
    if field is not None:
        said = "nothing" if item["type"] == "missing" else _shown(got)
        return f"{key}: got {said}, allowed {allowed(field)}"
    section = str(where[0])
    if len(where) == 1 and item["type"] == "too_long":
        return f"{section}: got {len(data[section])} tables, allowed at most {MAX_TABLES[section]}"
    table = f"one or more tables [[{section}]]" if section in TABLES else f"a table [{section}]"
    return f"{key}: got {_shown(got)}, allowed {table}"


def _key_of(item: ErrorDetails) -> Location:
    """The option that a problem is about: not the element of an array inside of it."""
    where = tuple(
        part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-"))
    )
    return where[:3] if where[0] in TABLES else where[:2]


def _dotted(where: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_bare(part)}" for part in where)
    return text.removeprefix(".")


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _section_key(where: Location) -> str:
    return ".".join(str(part) for part in where)


def _at(data: object, where: Location) -> object:
    for part in where:
        if isinstance(data, dict):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
    return data


def _field(where: Location) -> FieldInfo | None:
    names = [part for part in where if isinstance(part, str)]
    key = ".".join([f"{names[0]}[]" if names[0] in TABLES else names[0], *names[1:]])
    return dict(options()).get(key)


def _shown(value: object) -> str:
    text = "a table" if isinstance(value, dict) else toml_value(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _meant(where: Location) -> str:
    """What was probably meant by an unknown key: one spelled nearly so, or one of another section."""
    unknown = str(where[-1])
    sections = [field.alias or name for name, field in Settings.model_fields.items()]
    by_section: dict[str, list[str]] = {name: [] for name in sections}
    for key, _ in options():
        section, _, name = key.partition(".")
        by_section[section.removesuffix("[]")].append(name)
    near = sections if len(where) == 1 else by_section[str(where[0])]
    match = difflib.get_close_matches(unknown.lower(), near, 1)
    if match:
        return f"; did you mean {match[0]}?"
    for section, names in by_section.items():
        if unknown in names:
            return f"; {unknown} belongs in {f'[[{section}]]' if section in TABLES else f'[{section}]'}"
    return f"; there are {', '.join(near)}"


def _without(data: dict[str, Any], wrong: set[Location]) -> dict[str, Any]:
    """`data` without what is wrong; a table of several that lacks something goes as a whole."""
    kept: dict[str, Any] = {}
    for section, values in data.items():
        if (section,) in wrong:
            continue
        if section in TABLES:
            bad = {where[1] for where in wrong if where[0] == section and len(where) > 1}
            kept[section] = [each for index, each in enumerate(values) if index not in bad]
        else:
            kept[section] = {name: value for name, value in values.items() if (section, name) not in wrong}
    return kept


def _position(data: Mapping[str, Any]) -> Callable[[Location], tuple[int, ...]]:
    """Sort key: the order in which the sections and options stand in the file."""
    sections = list(data)

    def place(where: Location) -> tuple[int, ...]:
        parts, at = [sections.index(str(where[0]))], data[str(where[0])]
        for part in where[1:]:
            if isinstance(part, int):
                parts.append(part)
                at = at[part]
            else:
                names = list(at) if isinstance(at, dict) else []
                parts.append(names.index(part) if part in names else len(names))
        return tuple(parts)

    return place


def _tuples(value: object) -> object:
    """TOML arrays as tuples, which is what strict validation of a frozen value wants."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
