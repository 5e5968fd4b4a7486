"""`insitu model list|show|import|activate|rollback|deactivate`: the models of this site."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge.commands.invocation import AsJson, local_time, operator, require_owner, settings_of, utc_now
from edge.exit_codes import CommandError, ExitCode
from edge.output import message, progress, write_json, write_pairs, write_table, write_text

if TYPE_CHECKING:
    from edge.golden import GoldenReport
    from edge.options import Settings
    from model_store.manifest import Manifest
    from model_store.package import Package
    from model_store.store import ModelStore, StoredModel

DIGEST_SHOWN: Final = 12
_DIGEST_PART: Final = re.compile(r"[0-9a-f]{6,64}")

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model's name, or its digest (or 6 or more digits of it).")
]
Version = Annotated[
    str | None, typer.Argument(metavar="[VERSION]", help="Which version, where the store has several.")
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    group = typer.Typer(help="Import models, and choose which of them serve.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command()(show)
    group.command("import")(import_model)
    group.command()(activate)
    group.command()(rollback)
    group.command()(deactivate)
    app.add_typer(group, name="model")


def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models in the store, and which serve."""
    store = _store(settings_of(context))
    models = () if store is None else store.list()
    if as_json:
        write_json({"models": [asdict(model) for model in models]})
        return
    if not models:
        message("no model in the store; import one: insitu model import PACKAGE")
        return
    write_table(
        ["model", "version", "state", "digest", "MiB", "title", "problem"],
        [
            [m.name, m.version, m.state, m.digest[:DIGEST_SHOWN], _mib(m.size_bytes), m.title, m.problem]
            for m in models
        ],
    )


def show(context: typer.Context, model: ModelName, version: Version = None, as_json: AsJson = False) -> None:
    """Show what a model is for, and its history here."""
    store = _existing(settings_of(context))
    digest = _digest(store, model, version)
    stored = next(item for item in store.list() if item.digest == digest)
    manifest = store.get(digest).manifest
    line = store.serving().get(manifest.name)
    moves = [move.model_dump(mode="json") for move in store.history() if move.name == manifest.name]
    if as_json:
        write_json(
            {
                "model": asdict(stored),
                "serving": None if line is None else line.model_dump(mode="json"),
                "history": moves,
                "manifest": manifest.model_dump(mode="json", by_alias=True),
            }
        )
        return
    write_pairs(_described(stored, manifest))
    if moves:
        write_text("")
        write_table(
            ["when", "what", "version", "who", "reason"],
            [
                [
                    local_time(move["serving"]["since"]),
                    move["move"],
                    move["version"] or "",
                    move["serving"]["by"],
                    move["reason"],
                ]
                for move in moves
            ],
            "History of this name",
        )


def import_model(
    context: typer.Context,
    package: Annotated[
        Path, typer.Argument(metavar="PACKAGE", help="A package: a directory, or its .tar file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check a model package, and keep it in the store.

    Its golden cases are run on this machine. It does not serve yet: see `activate`.
    """
    from model_store.package import open_package
    from model_store.store import ModelStore

    settings = settings_of(context)
    require_owner(settings.directories.state)
    if not package.exists():
        raise CommandError(ExitCode.NOT_FOUND, f"{package}: no such directory or file")
    with open_package(package) as source:
        said = source.manifest
        reports = _run_golden(source, settings)
        store = ModelStore(_root(settings))
        with progress(
            "copying", 2 * sum(entry.size_bytes for entry in said.files.values()), in_bytes=True
        ) as advance:
            seen = [0]

            def told(done: int, _: int) -> None:
                advance(done - seen[0])
                seen[0] = done

            kept = store.import_package(source.directory, told)
        if kept.digest != source.digest:
            raise CommandError(
                ExitCode.FAILED,
                f"{package} changed during the import: checked {source.digest[:12]}, kept {kept.digest[:12]}",
                "do not activate it; import it again",
            )
    if as_json:
        write_json(
            {
                "name": said.name,
                "version": said.version,
                "digest": kept.digest,
                "golden": [asdict(report) for report in reports],
            }
        )
        return
    write_text(f"{said.name} {said.version} is in the store, digest {kept.digest[:DIGEST_SHOWN]}")
    for report in reports:
        labels = f", {report.label_share:.3%} of the labels differ" if report.label_share else ""
        write_text(
            f"golden case {report.file} agrees: largest difference {report.max_abs_difference:.2g}{labels}, "
            f"{report.run_s:.2f} s"
        )
    message(f"it does not serve yet: insitu model activate {said.name} {said.version}")


def activate(
    context: typer.Context, model: ModelName, version: Version = None, as_json: AsJson = False
) -> None:
    """Let a model serve from now on.

    Studies that close from now on get it. The version before it is kept: see `rollback`.
    """
    settings = settings_of(context)
    require_owner(settings.directories.state)
    store = _existing(settings)
    digest = _digest(store, model, version)
    store.activate(digest, who=operator(), now=utc_now())
    _moved(settings, store, store.get(digest).manifest.name, as_json)


def rollback(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    as_json: AsJson = False,
) -> None:
    """Return to the version that served before."""
    settings = settings_of(context)
    require_owner(settings.directories.state)
    store = _existing(settings)
    store.rollback(model, who=operator(), now=utc_now())
    _moved(settings, store, model, as_json)


def deactivate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    as_json: AsJson = False,
) -> None:
    """Switch a model off for studies from now on."""
    settings = settings_of(context)
    require_owner(settings.directories.state)
    store = _existing(settings)
    store.deactivate(model, who=operator(), now=utc_now())
    _moved(settings, store, model, as_json)


def active_models(settings: "Settings") -> list[dict[str, str]]:
    """Name, version and digest of each model that serves."""
    store = _store(settings)
    found = () if store is None else store.list()
    return [
        {"name": model.name, "version": model.version, "digest": model.digest}
        for model in found
        if model.state == "active"
    ]


def _run_golden(package: "Package", settings: "Settings") -> "tuple[GoldenReport, ...]":
    """Compile the package's steps and run its golden cases on this machine.

    Raises:
        ManifestError: a step is unknown, or its parameters are wrong.
        PackageError: a case does not agree, or cannot be read.
        EngineError: the model does not run here.
    """
    from edge.engine import Engine, WorkerLimits
    from edge.golden import run_golden
    from edge.pipeline import Pipeline
    from model_store.errors import PackageError

    said = package.manifest
    Pipeline.compile(said)
    limits = WorkerLimits(
        threads=settings.infer.threads, start_timeout_s=settings.infer.worker_start_timeout_s
    )
    with (
        progress(f"golden cases of {said.name} {said.version}", None),
        Engine.start(package, limits) as engine,
    ):
        reports = run_golden(engine, package)
    wrong = [f"golden case {report.file}: {report.problem}" for report in reports if not report.passed]
    if wrong:
        raise PackageError(f"model {said.name} {said.version}: " + "; ".join(wrong))
    return reports


def _moved(settings: "Settings", store: "ModelStore", name: str, as_json: bool) -> None:
    """Tell the daemon and the person what serves now."""
    from edge import bell

    bell.ring(settings.directories.runtime, "work")
    line = store.serving()[name]
    if as_json:
        write_json({"name": name, **line.model_dump(mode="json")})
        return
    serves = "no version serves" if line.active is None else _label(store, line.active)
    before = (
        ""
        if line.previous is None
        else f"; to return to {_label(store, line.previous)}: insitu model rollback {name}"
    )
    write_text(f"{name}: {serves}{'' if line.active is None else ' serves'}{before}")


def _label(store: "ModelStore", digest: str) -> str:
    return f"{store.get(digest).manifest.version} ({digest[:DIGEST_SHOWN]})"


def _root(settings: "Settings") -> Path:
    from edge.places import Places

    return Places(settings.directories).models


def _store(settings: "Settings") -> "ModelStore | None":
    """The store, where there is one: looking must not make it."""
    root = _root(settings)
    if not (root / "packages").is_dir():
        return None
    from model_store.store import ModelStore

    return ModelStore(root)


def _existing(settings: "Settings") -> "ModelStore":
    store = _store(settings)
    if store is None:
        raise CommandError(
            ExitCode.NOT_FOUND,
            f"{_root(settings)}: no model in the store",
            "import one: insitu model import PACKAGE",
        )
    return store


def _digest(store: "ModelStore", model: str, version: str | None) -> str:
    if version is None and _DIGEST_PART.fullmatch(model):
        found = [item.digest for item in store.list() if item.digest.startswith(model)]
        if len(found) == 1:
            return found[0]
    return store.find(model, version)


def _described(stored: "StoredModel", manifest: "Manifest") -> list[tuple[str, object]]:
    inputs = "; ".join(f"{item.name}: {item.kind}, {' or '.join(item.modality)}" for item in manifest.inputs)
    return [
        ("model", f"{manifest.name} {manifest.version}: {manifest.title}"),
        ("digest", stored.digest),
        ("state", stored.state + (f", {stored.problem}" if stored.problem else "")),
        ("vendor", manifest.vendor),
        ("intended use", manifest.intended_use),
        ("regulatory status", manifest.regulatory_status),
        ("licence", manifest.licence),
        ("UDI", manifest.udi or "-"),
        ("takes", inputs),
        ("makes", ", ".join(manifest.outputs.objects)),
        ("deadline", f"{manifest.deadline_s:g} s"),
        ("memory", f"{manifest.memory_mib} MiB"),
        ("golden cases", len(manifest.golden)),
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f}"
