"""A data port over devices in memory, for the tests of NFC."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from vdkit.block.device import BlockDevice
from vdkit.block.memory import MemoryStore
from vdkit.net.secret import Secret
from vdkit.sim.certificates import Certificate, make_certificate
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.ports import Refusal, denied
from vdkit.transports import nfc
from vdkit.transports.nfc import NfcDisk, NfcTarget, Timeouts

PATH = "[ds] vm/vm.vmdk"
FILE = "vm.vmdk"
#: Looks like nothing else, so that a search of all output finds it.
TICKET = "52cdebc5-canary-ticket-b7ee"
QUICK = Timeouts(connect=10, request=30, read=30, write=30, close=5)


@functools.cache
def certificate() -> Certificate:
    return make_certificate()


@functools.cache
def other_certificate() -> Certificate:
    return make_certificate("somebody.else")


def open_nfc(aim: NfcTarget, *, request_size: int = 256 << 10, **options: Any) -> NfcDisk:
    """With a fixed size of requests: the default depends on how quick the machine is just now. No pauses."""
    options.setdefault("sleep", lambda seconds: None)
    return nfc.open_nfc(aim, request_size=request_size, **options)


class Office:
    """Tickets that may be used again and again, for one object of a memory store."""

    def __init__(self, content: bytes = b"", *, writable: bool = True) -> None:
        self.store = MemoryStore("ds")
        self.store.create(FILE, len(content)).close()
        with self.store.open_writable(FILE) as disk:
            if any(content):
                disk.write_from(0, content)
        self.writable = writable
        self.refusal: Refusal | None = None
        self.wrap: Callable[[BlockDevice], BlockDevice] = lambda device: device
        self.database: Mapping[str, str] = {"geometry.sectors": "63", "adapterType": "lsilogic"}

    def redeem(self, ticket: str) -> Office | None:
        return self if ticket == TICKET else None

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        if self.refusal is not None:
            raise self.refusal
        if path != PATH or (writable and not self.writable):
            raise denied(path, writable=writable)
        return self.wrap(self.store.open_writable(FILE) if writable else self.store.open(FILE))

    def disk_database(self, path: str) -> Mapping[str, str]:
        return self.database

    def content(self) -> bytes:
        with self.store.open(FILE) as disk:
            data = bytearray(disk.capacity)
            disk.read_into(0, data)
        return bytes(data)


def target(server: NfcServer, *, port: int | None = None, **changed: Any) -> NfcTarget:
    fields: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port if port is None else port,
        "ticket": Secret(TICKET),
        "service": "nfc",
        "thumbprint": server.thumbprint,
        "certificate": None,
        "path": PATH,
    }
    return NfcTarget(**{**fields, **changed})


@contextmanager
def served(office: Office | None = None, **options: Any) -> Iterator[NfcServer]:
    with NfcServer(office or Office(bytes(1 << 20)), certificate(), **options) as server:
        yield server


@contextmanager
def opened(office: Office, faults: NfcFaults | None = None, **options: Any) -> Iterator[NfcDisk]:
    """A disk of a server of its own."""
    options.setdefault("timeouts", QUICK)
    with served(office, faults=faults) as server, open_nfc(target(server), **options) as disk:
        yield disk


@contextmanager
def scripted(handler: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server whose one connection ``handler`` plays; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        with sock:
            sock.settimeout(30)
            try:
                handler(sock)
            except OSError:
                return

    thread = threading.Thread(target=run, name="scripted")
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()
