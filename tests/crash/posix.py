"""What the least that POSIX promises would leave after a power cut, from a log of the system calls.

ext4 gives more than is asked for: the fsync of one file writes the names that were made before it,
too. So a directory whose fsync was forgotten is not seen on it (`recorded_disk`). Here the calls of
the receiver, as strace writes them, run on a model that keeps only what fsync covers: of a file
its bytes at the last fsync, of a directory the names at the last fsync. Anything newer may be there
or not: a name that was made since is not counted on, and neither is one whose removal has begun.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TRACE: Final = "openat,mkdir,link,linkat,unlink,unlinkat,rename,write,writev,pwrite64,fsync,fdatasync"

_LINE: Final = re.compile(r"(\d+) +([\d.]+) (.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (\d+)")
_TEXT: Final = re.compile(r'"([^"]*)"')
_OF_HANDLE: Final = re.compile(r"\d+<([^>]*)>")


def calls(log: Path) -> Iterator[tuple[int, str, str]]:
    """Time of its return (ns, wall clock), name and arguments of each call that succeeded."""
    begun: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if not (parts := _LINE.fullmatch(line)):
            continue
        thread, at, text = parts.groups()
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>")
            continue
        if resumed := _RESUMED.match(text):
            text = begun.pop(thread, "") + resumed.group(1)
        if call := _CALL.match(text):
            seconds, fraction = at.split(".")
            yield int(seconds) * 10**9 + int(fraction.ljust(9, "0")), call.group(1), call.group(2)


@dataclass
class Model:
    """The strictest disk below `root`, which is there. Feed it `take`; ask it `holds`."""

    root: Path
    directories_lie: bool = False
    """A mutant: the fsync of a directory does nothing."""
    names: dict[str, int] = field(default_factory=dict)
    synced: set[str] = field(default_factory=set)  # names that are on disk for certain
    written: dict[int, bool] = field(default_factory=dict)  # inode to whether all that was written is on disk

    def take(self, name: str, arguments: str) -> None:
        """Do one call."""
        texts = _TEXT.findall(arguments)
        if name in {"openat", "mkdir"}:
            if ("O_CREAT" in arguments or name == "mkdir") and texts[0] not in self.names:
                self.names[texts[0]] = len(self.written)
                self.written[len(self.written)] = True
        elif name in {"link", "linkat"} and len(texts) == 2 and texts[0] in self.names:
            self.names[texts[1]] = self.names[texts[0]]
        elif name in {"unlink", "unlinkat"}:
            self.names.pop(texts[0], None)
            self.synced.discard(texts[0])
        elif handle := _OF_HANDLE.match(arguments):
            self._of_handle(name, handle.group(1))

    def _of_handle(self, name: str, path: str) -> None:
        if name in {"fsync", "fdatasync"}:
            if Path(path).suffix == "" and any(each.startswith(f"{path}/") for each in self.names):
                if not self.directories_lie:
                    self.synced |= {each for each in self.names if str(Path(each).parent) == path}
            elif path in self.names:
                self.written[self.names[path]] = True
        elif path in self.names:
            self.written[self.names[path]] = False

    def holds(self, name: Path) -> bool:
        """Whether the file of this name is certainly on disk, with all its bytes, under any of its names."""
        inode = self.names.get(str(name))
        if inode is None or not self.written[inode]:
            return False
        return any(self._is_certain(Path(each)) for each, of in self.names.items() if of == inode)

    def _is_certain(self, name: Path) -> bool:
        if name == self.root or name in self.root.parents:
            return True
        known_before = str(name) not in self.names  # made before the log began
        return (known_before or str(name) in self.synced) and self._is_certain(name.parent)
