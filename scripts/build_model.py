"""Fill in the files of a model package: their sizes and sha256, in its manifest.json.

    scripts/build-model DIRECTORY [--check]

Every file below DIRECTORY but the manifest itself is listed under `files`; the rest of the
manifest stays as it is. With --check nothing is written: exit status 1 says that the manifest's
`files` are not those in the directory. For a package's maker; a hospital never runs it.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from model_store.durable import write_file
from model_store.errors import ManifestError
from model_store.manifest import parse

MANIFEST = "manifest.json"


def main() -> int:
    """Build, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when it would change")
    arguments = parser.parse_args()
    path = arguments.directory / MANIFEST
    try:
        raw = path.read_text()
        manifest = json.loads(raw)
        manifest["files"] = listing(arguments.directory)
        built = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        parse(built.encode(), str(path))
    except (OSError, ValueError, ManifestError) as error:
        print(f"build-model: {error}", file=sys.stderr)
        return 1
    if built == raw:
        return 0
    if arguments.check:
        print(f"build-model: {path}: `files` is not what the directory holds", file=sys.stderr)
        return 1
    write_file(path, built.encode(), mode=0o644)
    return 0


def listing(directory: Path) -> dict[str, dict[str, str | int]]:
    """Size and sha256 of every file, by its name relative to the directory."""
    files: dict[str, dict[str, str | int]] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"sha256": digest, "size_bytes": path.stat().st_size}
    return files


if __name__ == "__main__":
    sys.exit(main())
