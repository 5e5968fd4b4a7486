"""A modality that sends until all is taken: `sender.py HOST:PORT LOG DIRECTORY…`.

One association at a time for each directory, all directories at once. Each line of standard input, a
number, permits so many more instances; its end permits the rest. Each success is a line of LOG, written
when the response is there and not before: the time (monotonic, ns) and the SOP Instance UID. What was
not answered with success is sent again, on a new association, for as long as it takes; each failure is
a line of the time, the UID and the status. Ends with 0 when everything has been taken, with 1 when a
limit of time has passed.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # -I leaves the repository out

from dicom.errors import PeerError
from dicom.send import Destination, Sender, Timeouts

LIMIT_S: Final = 100.0
ENDLESS: Final = 1_000_000
WAIT_S: Final = 0.05
"""Before the next association, as a modality waits some seconds."""


def main() -> None:
    host, port = sys.argv[1].split(":")
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    until = time.monotonic() + LIMIT_S
    done: list[Path] = []
    permits = threading.Semaphore(0)
    insitu = Destination("insitu", "INSITU", host, int(port))

    def send(directory: Path) -> None:
        waiting = sorted(directory.iterdir())  # a study after the other, by their names
        again = threading.Event()
        while waiting and time.monotonic() < until:
            try:
                with Sender(insitu, "STORESCU", Timeouts()) as sender:
                    receipts = sender.send_each(list(waiting))
                    for path in list(waiting):
                        permits.acquire()
                        receipt = next(receipts)
                        status = "" if receipt.ok else f" {receipt.status:04X}"
                        line = f"{time.monotonic_ns()} {receipt.sop_instance_uid}{status}\n"
                        os.write(log, line.encode())
                        if receipt.ok:
                            waiting.remove(path)
            except PeerError:
                pass  # killed, or restarting
            if waiting:
                again.wait(WAIT_S)
        if not waiting:
            done.append(directory)

    directories = [Path(name) for name in sys.argv[3:]]
    threads = [threading.Thread(target=send, args=(directory,)) for directory in directories]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        permits.release(int(line))
    permits.release(ENDLESS)
    for thread in threads:
        thread.join()
    sys.exit(0 if len(done) == len(directories) else 1)


if __name__ == "__main__":
    main()
