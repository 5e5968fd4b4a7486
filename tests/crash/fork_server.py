"""Starts `insitu` again and again without the second of imports: a fork of a process that has them.

For each line of standard input, a JSON list of arguments, it forks a child that is `insitu` with these
arguments; it prints `pid N`, the child prints what it prints, and at its end `ended STATUS` follows.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # -I leaves the repository out

import edge.daemon
from edge.__main__ import main as insitu


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.argv = ["insitu", *json.loads(line)]
            os._exit(insitu())
        print(f"pid {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    assert edge.daemon is not None
    main()
