"""The daemon's log, as a process writes it."""

import json
import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging, warnings
from edge.logs import configure
from edge.options import Log
configure(Log(level={level!r}, format={format!r}))
log = logging.getLogger("edge.daemon")
log.debug("a detail")
log.info("calling AE title %s", "A\\x1b[2J\\nB")
for library in ("pydicom", "pynetdicom.acse", "highdicom"):
    logging.getLogger(library).error("(0010,0010) DOE^JANE")
warnings.warn("Invalid value for VR PN: DOE^JANE")
log.error("as expected", exc_info=False)
try:
    raise ValueError("wrong")
except ValueError:
    log.exception("it failed")
"""


def written(level: str, form: str) -> list[str]:
    call = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM.format(level=level, format=form)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert call.stdout == ""
    return call.stderr.splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_library_says_of_a_data_set_is_in_no_log(form: str) -> None:
    assert not [line for line in written("debug", form) if "DOE" in line]


def test_a_line_of_text_has_instant_level_logger_and_no_control_character() -> None:
    first, expected, second, *traceback = written("info", "text")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO edge\.daemon: calling AE title A\\x1b\[2J\\nB", first
    )
    assert expected.endswith("ERROR edge.daemon: as expected")
    assert second.endswith("ERROR edge.daemon: it failed")
    assert all(line.startswith("  ") for line in traceback)
    assert traceback[-1] == "  ValueError: wrong"


def test_json_is_one_object_a_line() -> None:
    detail, info, expected, error = (json.loads(line) for line in written("debug", "json"))
    assert detail["level"] == "debug"
    assert set(info) == set(expected) == {"time", "level", "logger", "message"}
    assert expected["message"] == "as expected"
    assert info["message"] == "calling AE title A\x1b[2J\nB"
    assert error["traceback"][-1] == "ValueError: wrong"


def test_what_is_below_the_level_is_not_written() -> None:
    assert len([line for line in written("error", "json") if line]) == 2
