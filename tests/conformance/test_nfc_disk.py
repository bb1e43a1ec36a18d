"""A disk over NFC keeps the contract of a block device, in clear and in TLS, with every compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from nfctools import QUICK, Office, certificate, target
from vdkit.block.device import BlockDevice
from vdkit.block.memory import MemoryDevice
from vdkit.sim.nfc_server import NfcServer
from vdkit.testing.devices import DeviceConformance
from vdkit.transports.nfc import CompressionName, Mode, open_nfc


class NfcConformance(DeviceConformance):
    __test__ = False
    capacity = 600 * 1024 + 512
    examples = 8
    mode: ClassVar[Mode] = "nbd"
    compression: ClassVar[CompressionName] = "none"
    request_size: ClassVar[int] = 64 << 10

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        self.servers: list[NfcServer] = []
        yield
        for server in self.servers:
            server.stop()

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        server = NfcServer(Office(content), certificate()).start()
        self.servers.append(server)
        return open_nfc(
            target(server),
            mode=self.mode,
            writable=True,
            compression=self.compression,
            request_size=self.request_size,
            timeouts=QUICK,
        )


class TestClear(NfcConformance):
    __test__ = True


class TestTls(NfcConformance):
    __test__ = True
    mode = "nbdssl"
    request_size = 256 << 10


class TestSkipz(NfcConformance):
    __test__ = True
    compression = "skipz"


class TestFastlz(NfcConformance):
    __test__ = True
    compression = "fastlz"
    capacity = 200 * 1024 + 512


class TestAuto(NfcConformance):
    __test__ = True
    compression = "auto"


class TestZlib(NfcConformance):
    __test__ = True
    compression = "zlib"
    request_size = 1 << 20


def test_what_is_closed_is_there() -> None:
    office = Office(bytes(3 << 20))
    data = bytes(range(256)) * 8192
    with NfcServer(office, certificate()) as server:
        with open_nfc(target(server), writable=True, timeouts=QUICK) as disk:
            disk.write_many([(512 * 3, data), (0, b"x" * 512)])
        assert office.content()[: 512 * 3] == b"x" * 512 + bytes(1024)
        assert office.content()[512 * 3 : 512 * 3 + len(data)] == data
        with open_nfc(target(server), timeouts=QUICK) as disk:
            assert MemoryDevice.from_bytes(office.content()).capacity == disk.capacity
