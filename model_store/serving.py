"""The serving table: which package serves under each model name, and every move of it.

Owns `<root>/serving.json` and `<root>/history.jsonl`, and nothing of the packages themselves;
`model_store.store` decides on moves. The history is written first, so a table that is damaged
can be made again from it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_store.durable import append_line, write_file
from model_store.errors import StoreError, UnknownModelError
from model_store.manifest import Name, Sha256, Version

MAX_TABLE_BYTES: Final = 1 << 20
"""1 MiB: some 3,000 model names."""
MAX_HISTORY_BYTES: Final = 4 << 20
"""4 MiB read from the end of the history: some 10,000 moves, more than a site makes in its life."""

MoveName = Literal["activate", "deactivate", "rollback", "fallback"]


class Serving(BaseModel):
    """One line of the serving table: which package of a name serves, and since when."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    active: Sha256 | None
    """The digest that serves; None: the model is switched off."""
    previous: Sha256 | None
    """The digest that served before and is good to return to."""
    since: AwareDatetime
    by: Annotated[str, Field(min_length=1, max_length=128)]


class Move(BaseModel):
    """One line of the history: what happened to a name, and what its line in the table became."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    move: MoveName
    name: Name
    version: Version | None
    """Of the package that serves after the move."""
    reason: str = ""
    serving: Serving


class ServingTable:
    """The table below `root`; who moves a line holds the store's lock."""

    def __init__(self, root: Path) -> None:
        self._table = root / "serving.json"
        self._history = root / "history.jsonl"

    def read(self) -> tuple[Mapping[str, Serving], str]:
        """The lines by model name, and a notice: empty, or that the table was damaged.

        Raises:
            StoreError: the disk cannot be read.
        """
        with disk_errors(self._table):
            try:
                with self._table.open("rb") as file:
                    raw = file.read(MAX_TABLE_BYTES + 1)
            except FileNotFoundError:
                raw = None
        if raw is not None and len(raw) <= MAX_TABLE_BYTES:
            try:
                return _LINES.validate_json(raw), ""
            except ValidationError:
                pass  # damaged: the history says what it was
        lines = {move.name: move.serving for move in self.history()}
        missing = raw is None and not lines  # a new store has neither
        return lines, "" if missing else f"{self._table} is damaged; what serves is taken from the history"

    def line(self, name: str) -> Serving:
        """The line of `name`.

        Raises:
            UnknownModelError: there is none; the message says which there are.
        """
        lines, _ = self.read()
        if name not in lines:
            there = ", ".join(sorted(lines)) or "none"
            raise UnknownModelError(
                f"model {name!r:.100} is not in the serving table; those that are: {there}"
            )
        return lines[name]

    def history(self) -> tuple[Move, ...]:
        """The moves, oldest first.

        The last move of a name may have been cut off by a crash before it reached the table. A line
        that was cut off itself is left out.

        Raises:
            StoreError: the disk cannot be read.
        """
        with disk_errors(self._history):
            try:
                with self._history.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - MAX_HISTORY_BYTES))
                    lines = file.read(MAX_HISTORY_BYTES).split(b"\n")
            except FileNotFoundError:
                return ()
        moves = []
        for line in lines:
            try:
                moves.append(Move.model_validate_json(line))
            except ValidationError:
                continue  # cut off by a crash, or by where the reading began
        return tuple(moves)

    def move(self, move: Move) -> Serving:
        """Write one move, durably: to the history, then to the table.

        Raises:
            StoreError: the disk is full, read-only or failing; the table is as it was.
        """
        lines, _ = self.read()
        with disk_errors(self._table):
            append_line(self._history, move.model_dump_json())
            write_file(self._table, _LINES.dump_json({**lines, move.name: move.serving}, indent=1) + b"\n")
        return move.serving


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of our own disk into a StoreError that names the place."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


_LINES: Final = TypeAdapter(dict[Name, Serving])
