"""Programs that know the Standard and not us: each runs as a process of its own."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DCIODVFY = Path(sys.executable).with_name("dciodvfy")
DSRDUMP = Path("/usr/bin/dsrdump")
needs_dciodvfy = pytest.mark.skipif(
    not DCIODVFY.exists(), reason="dciodvfy (dicom3tools) is not in this venv"
)
needs_dsrdump = pytest.mark.skipif(not DSRDUMP.exists(), reason="dsrdump (dcmtk) is not installed")
_TIME_LIMIT_S = 60


HARMLESS = (
    # The dictionary of dicom3tools is older than Device UID within the Contributing Equipment Sequence.
    "Warning - Attribute is not present in standard DICOM IOD - (0x0018,0x1002) UI Device UID",
    "Warning - Dicom dataset contains attributes not present in standard DICOM IOD",
    # As it is in the source, and a result says the same.
    "Warning - Value dubious for this VR - (0x0010,0x0010) PN Patient's Name",
    "Warning - Missing attribute or value that would be needed to build DICOMDIR",
    # The source names no body part, so the side is unknown indeed.
    "Warning - is only permitted to be empty when actually unknown; should be absent",
    # Private coding schemes: 99IHE, and those of models without a standard code.
    "Warning - Unrecognized defined term <99",
)
"""Warnings that were looked at, and why each is none of ours to mend."""


@dataclass(frozen=True)
class Verdict:
    """What dciodvfy says of a file, each line once."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    recognised: str
    """The Information Object Definition that it took the file for."""

    @property
    def questions(self) -> tuple[str, ...]:
        """The warnings that nobody has looked at."""
        return tuple(line for line in self.warnings if not line.startswith(HARMLESS))


def dciodvfy(path: Path) -> Verdict:
    """The Standard's module tables, asked by dicom3tools."""
    done = subprocess.run(
        [DCIODVFY, path], capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False, errors="replace"
    )
    lines = list(dict.fromkeys(line for line in (done.stdout + done.stderr).splitlines() if line.strip()))
    warnings = tuple(line for line in lines if line.startswith("Warning"))
    recognised = [line for line in lines if line.isalnum()]
    # Whatever is neither a warning nor the name of the object counts as an error, a crash included.
    errors = tuple(line for line in lines if line not in warnings and line not in recognised)
    if done.returncode < 0 or (done.returncode and not errors and not recognised):
        errors = (*errors, f"dciodvfy ended with {done.returncode}")
    return Verdict(errors, warnings, recognised[0] if recognised else "")


def dsrdump(path: Path) -> str:
    """The report as dcmtk understands it, with codes.

    Raises:
        AssertionError: dcmtk cannot read it, or has something to complain of.
    """
    done = subprocess.run(
        [DSRDUMP, "+Pl", "+Pc", "+Pt", path],
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return done.stdout
