"""The entry point of `insitu`: sets the environment, checks our packages, and runs the command line."""

import importlib.util
import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command line; the exit status."""
    # ONNX Runtime's Linux wheels send telemetry from their first import unless this is set before.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    found = foreign_packages(Path(__file__).resolve().parents[1])
    if found:
        sys.stderr.write("".join(f"insitu: {line}\n" for line in found))
        return 1
    from edge.cli import run

    return run(sys.argv[1:])


def foreign_packages(root: Path) -> list[str]:
    """A line for each of our packages that Python would take from elsewhere than `root`.

    `dicom` was the import name of pydicom before 1.0, and a folder of that name is common.
    """
    lines = []
    for name in ("dicom", "model_store"):
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if root / name not in places[:1]:
            where = places[0] if places else spec.origin if spec else None
            lines.append(
                f"package `{name}` is {f'taken from {where}' if where else 'missing'}, "
                f"must be {root / name}; remove the other one, or start Python with -I"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
