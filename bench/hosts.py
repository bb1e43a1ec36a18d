"""Processes that a network benchmark talks to: a data port, a relay that delays, the bare loops' server.

``python hosts.py nfc CAPACITY`` (a disk that costs nothing), ``python hosts.py file PATH`` (a raw image) and
``python hosts.py relay PORT SECONDS`` print a line of JSON with their port and serve until their standard
input ends. ``python hosts.py machines FOLDER COUNT CAPACITY FILLED MEMORY`` is a whole simulated vCenter with
machines of one disk each, ``FILLED`` bytes of it random; it answers a line of JSON for each that it is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vdkit.block.device import BaseWritableDevice, BlockDevice
from vdkit.block.local import FolderStore
from vdkit.errors import StoreError
from vdkit.net.secret import Secret
from vdkit.sim.certificates import make_certificate
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.ports import Grant
from vdkit.testing.relay import Relay
from vdkit.transports.nfc import NfcTarget

if TYPE_CHECKING:
    from vdkit.sim.host import SimulatedHost

HOST = "127.0.0.1"
BENCH = Path(__file__).resolve().parent
#: The content of the served disk repeats after this many bytes, a prime: no shift goes unnoticed.
PERIOD = 65521
_PATTERN = memoryview(bytes((index * 7 + index // 256) & 255 for index in range(PERIOD)) * 34)
#: Bytes compared at the head of each grain: what is looked at costs next to nothing.
CHECKED = 512
GRAIN = 1 << 16
#: Seconds to wait for a child that was told to end.
END_SECONDS = 10


class PatternDevice(BaseWritableDevice):
    """A disk that costs nothing: the yardstick sends from one kept buffer, and this one too.

    The head of every grain that is read is the disk's, what lies between is whatever the buffer held; of a
    write the same places are looked at.
    """

    def _read_into(self, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), GRAIN):
            step = min(CHECKED, len(view) - start)
            view[start : start + step] = pattern(offset + start, step)

    def _write_from(self, offset: int, view: memoryview) -> None:
        check(offset, view)

    def _flush(self) -> None:
        """Nothing is kept."""


def pattern(offset: int, length: int) -> memoryview:
    """What the served disk holds, without a copy; ``length`` up to two mebibytes."""
    start = offset % PERIOD
    return _PATTERN[start : start + length]


def check(offset: int, view: memoryview) -> None:
    """Refuse a piece in which the head of a grain is not the disk's."""
    for start in range(0, len(view), GRAIN):
        part = bytes(view[start : start + CHECKED])
        if part != pattern(offset + start, len(part)):
            raise StoreError(f"wrong bytes at offset {offset + start}")


class OpenOffice:
    """Takes every ticket and grants one disk."""

    def __init__(self, opener: Callable[[bool], BlockDevice]) -> None:
        self._opener = opener

    def redeem(self, ticket: str) -> Grant:
        del ticket
        return self

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        del path
        return self._opener(writable)


class Child:
    """A process of ours that announces itself in one line and ends with its standard input."""

    def __init__(self, *command: object, given: dict[str, object] | None = None) -> None:
        """``given`` is the first line of its standard input: what must not be seen among its arguments."""
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        if given is not None:
            self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{command[0]} did not start")
        self.announced: dict[str, object] = json.loads(line)

    def ask(self, question: dict[str, object]) -> dict[str, Any]:
        """Tell the process something and take its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

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


def target_of(host: Child, port: int | None = None) -> NfcTarget:
    """The disk of a data port, reached directly or through another ``port``."""
    return NfcTarget(
        host=HOST,
        port=port or host.port,
        ticket=Secret("bench"),
        service="nfc",
        thumbprint=str(host.announced["thumbprint"]),
        certificate=None,
        path="[bench] disk/disk.vmdk",
    )


def name_of(number: int) -> str:
    """Of a simulated machine, counted from 1."""
    return f"vm{number}"


def _serve_machines(folder: Path, count: int, capacity: int, filled: int, memory: int | None) -> None:
    from vdkit.sim import diskaccess
    from vdkit.sim.host import SimulatedHost
    from vdkit.sim.scenario import Scenario
    from vdkit.sim.snapshot import DiskSpec

    scenario = Scenario(nfc_memory_limit=memory)
    host = SimulatedHost([folder], personality="vcenter", scenario=scenario)
    sums = {}
    for number in range(1, count + 1):
        machine = host.inventory.create_machine(name_of(number), "datastore1", [DiskSpec(capacity=capacity)])
        datastore, name = host.inventory.resolve(machine.disk(2000).file)
        total = 0
        with diskaccess.open_for_writing(machine, datastore, name) as disk:
            for offset in range(0, filled, len(_PATTERN)):
                data = os.urandom(min(len(_PATTERN), filled - offset))
                disk.write_from(offset, data)
                total = zlib.crc32(data, total)
        sums[name_of(number)] = total
    with host:
        environment = {key: value for key, value in host.environment().items() if key.startswith("VDKIT_")}
        print(json.dumps({"port": host.port, "sums": sums, **environment}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(host, json.loads(line))), flush=True)


def _answer(host: SimulatedHost, question: dict[str, Any]) -> dict[str, Any]:
    match question:
        case {"faults": fields}:
            host.set_data_faults(NfcFaults(**{name: _frozen(value) for name, value in fields.items()}))
            return {}
        case {"expire": True}:
            host.expire_sessions()
            return {}
        case {"peaks": True}:
            return {"memory": host.nfc_memory_peak, "connections": host.nfc_connections_peak}
        case {"mistakes": True}:
            return {"mistakes": [repr(error) for error in host.internal_errors]}
        case _:
            raise SystemExit(f"not understood: {question}")


def _frozen(value: object) -> object:
    """JSON has no tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _announce(**facts: object) -> None:
    print(json.dumps(facts), flush=True)
    sys.stdin.read()


def _serve(opener: Callable[[bool], BlockDevice]) -> None:
    with NfcServer(OpenOffice(opener), make_certificate(), HOST) as server:
        _announce(port=server.port, thumbprint=server.thumbprint)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["nfc", capacity]:
            size = int(capacity)
            _serve(lambda writable: PatternDevice(name="pattern", capacity=size, writable=writable))
        case ["file", name]:
            path = Path(name)
            store = FolderStore(path.parent)
            _serve(lambda writable: (store.open_writable if writable else store.open)(path.name))
        case ["machines", folder, count, capacity, filled, memory]:
            _serve_machines(Path(folder), int(count), int(capacity), int(filled), int(memory) or None)
        case ["relay", port, seconds]:
            with Relay(HOST, int(port), to_server=float(seconds), to_client=float(seconds)) as relay:
                _announce(port=relay.port)
        case _:
            raise SystemExit(f"not understood: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
