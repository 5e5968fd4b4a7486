"""The daemon's log: lines for people or JSON for a collector, on standard error.

Libraries that quote data sets in their messages are silenced here, as are Python's own
warnings: a value that pydicom complains of may be a patient's name. What a text from the
network can do to a line is bounded: control characters are spelled out.
"""

import json
import logging
import sys
import traceback
import warnings
from datetime import UTC, datetime
from typing import Final

from edge.options import Log
from edge.output import printable

QUOTING_LIBRARIES: Final = ("pydicom", "pynetdicom", "highdicom", "PIL", "python_multipart", "py.warnings")
"""Their warnings and errors contain attribute values, or the identifiers of a query."""


def configure(log: Log) -> None:
    """Send the log of this process to standard error, as `[log]` says; called once, by `insitu run`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log.format == "json" else TextLines())
    logging.basicConfig(level=log.level.upper(), handlers=[handler], force=True)
    for name in QUOTING_LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = False
        library.addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")


class TextLines(logging.Formatter):
    """`2025-01-31T12:00:00.000Z INFO edge.daemon: message`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; only a traceback of ours has line breaks."""
        line = f"{_instant(record)} {record.levelname} {record.name}: {printable(record.getMessage())}"
        return line + "".join(f"\n  {printable(part)}" for part in _traceback(record))


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        data: dict[str, object] = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        lines = _traceback(record)
        if lines:
            data["traceback"] = lines
        return json.dumps(data)


def _instant(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(record: logging.LogRecord) -> list[str]:
    # logging keeps what it was called with: False where a caller wants no traceback, though it is not typed.
    if not record.exc_info or record.exc_info[0] is None:
        return []
    return "".join(traceback.format_exception(*record.exc_info)).rstrip().split("\n")
