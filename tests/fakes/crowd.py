"""Peers that flood, as a process of their own so that they do not share the acceptor's interpreter.

    python crowd.py connections HOST PORT SOURCE GARBAGE
    python crowd.py data HOST PORT SOURCE BEGINNING FRAGMENT

The last arguments are bytes in hexadecimal. `connections` connects, sends the garbage and
closes, over and over; `data` sends the beginning and then the fragment without end. Either
writes a line when it has begun and runs until its standard input is closed.
"""

import contextlib
import socket
import sys
import threading


def connect(host: str, port: int, source: str) -> socket.socket:
    return socket.create_connection((host, port), 30, source_address=(source, 0))


def flood(kind: str, host: str, port: int, source: str, first: bytes, unit: bytes) -> None:
    noise = unit * 20_000
    while True:
        with contextlib.suppress(OSError), connect(host, port, source) as peer:
            peer.sendall(first)
            while kind == "data":
                peer.sendall(noise)


def main() -> None:
    kind, host, port, source, first, *unit = sys.argv[1:]
    arguments = (kind, host, int(port), source, bytes.fromhex(first), bytes.fromhex("".join(unit)))
    threading.Thread(target=flood, args=arguments, daemon=True).start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
