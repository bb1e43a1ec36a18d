"""Processes that a network benchmark talks to: a data port, a relay that delays, the bare loops' server.

``python hosts.py nfc CAPACITY`` and ``python hosts.py relay PORT SECONDS`` print a line of
JSON with their port and serve until their standard input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.sim.certificates import make_certificate
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.ports import Grant
from vdkit.testing.relay import Relay

HOST = "127.0.0.1"
BENCH = Path(__file__).resolve().parent
#: The content of the served disk repeats after this many bytes, a prime: no shift goes unnoticed.
PERIOD = 65521
_PATTERN = bytes((index * 7 + index // 256) & 255 for index in range(PERIOD)) * 34
#: Seconds to wait for a child that was told to end.
END_SECONDS = 10


class PatternDevice(BaseDevice):
    """A disk that costs nothing to read: the yardstick's server sends from memory, and so does this one."""

    def _read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        whole = memoryview(_PATTERN)
        while done < len(view):
            start = (offset + done) % PERIOD
            step = min(len(view) - done, len(whole) - start)
            view[done : done + step] = whole[start : start + step]
            done += step


def pattern(offset: int, length: int) -> bytes:
    """What a read of the served disk must give; ``length`` up to a mebibyte."""
    start = offset % PERIOD
    return _PATTERN[start : start + length]


class OpenOffice:
    """Takes every ticket and grants one disk of the given size."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity

    def redeem(self, ticket: str) -> Grant:
        del ticket
        return self

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        assert not writable
        return PatternDevice(name=path, capacity=self._capacity)


class Child:
    """A process of ours that announces itself in one line and ends with its standard input."""

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{command[0]} did not start")
        self.announced: dict[str, object] = json.loads(line)

    @property
    def port(self) -> int:
        return int(str(self.announced["port"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _announce(**facts: object) -> None:
    print(json.dumps(facts), flush=True)
    sys.stdin.read()


def main(arguments: list[str]) -> None:
    match arguments:
        case ["nfc", capacity]:
            with NfcServer(OpenOffice(int(capacity)), make_certificate(), HOST) as server:
                _announce(port=server.port, thumbprint=server.thumbprint)
        case ["relay", port, seconds]:
            with Relay(HOST, int(port), to_server=float(seconds), to_client=float(seconds)) as relay:
                _announce(port=relay.port)
        case _:
            raise SystemExit(f"not understood: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
