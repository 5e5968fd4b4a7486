"""What the command line writes: data to standard output, everything else to standard error.

On a terminal tables and progress are drawn by rich; elsewhere tables are plain aligned
text, whole, without colour, and there is no progress. JSON is for programs. Control
characters never reach a terminal: a text that came from the network may hold any.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

Advance = Callable[[int], None]
"""Called with how much more is done, in the unit of the total."""


class Stream(Protocol):
    """The part of a text stream that is written to."""

    def write(self, text: str, /) -> int:
        """Write `text`."""

    def isatty(self) -> bool:
        """Whether a person looks at it."""


def printable(text: object) -> str:
    """`text` with every character that could move a cursor or hide something spelled out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


MAX_UNWRAPPED: Final = 7
"""Columns of a table whose cells are never broken: a key that is broken cannot be copied."""


def write_json(data: Mapping[str, object]) -> None:
    """One JSON object; its keys are documented in `docs/cli.md`."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def write_text(text: str) -> None:
    """A text of ours, several lines as it stands."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def write_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Name and value, a line each."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        sys.stdout.write(f"{name:<{width}}  {printable(value)}".rstrip() + "\n")


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table; every cell is shown whole."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _rich_table(columns, cells, title)
    else:
        sys.stdout.write(plain_table(columns, cells, title))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """The table as aligned text: two spaces between columns, none at the end of a line."""
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    text = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*([title] if title else []), *text]) + "\n"


def message(text: str) -> None:
    """Tell the person something that is not data."""
    sys.stderr.write("\n".join(printable(line) for line in text.split("\n")) + "\n")


def is_terminal(stream: Stream) -> bool:
    """Whether rich may draw on `stream`."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def progress(text: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Advance]:
    """A progress bar on standard error while the block runs; silent where that is no terminal.

    Without a total the bar only shows that something goes on, and for how long.
    """
    if not is_terminal(sys.stderr):
        yield _nothing
        return
    from rich.console import Console  # noqa: PLC0415 - 60 ms that only a bar needs
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn()]
    if total is None:
        amount = [TimeElapsedColumn()]
    elif in_bytes:
        amount = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amount)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(text), total=total)
        yield lambda done: bar.advance(task, done)


def _nothing(_: int) -> None:
    """No bar, no advance."""


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=len(columns) <= MAX_UNWRAPPED, overflow="fold")
    table.add_column(columns[-1], overflow="fold")  # the last one is what is said in words
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    Console(highlight=False).print(table)
