"""What the tests of whole jobs share: a host with a guest that writes, a repository, a listening observer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vdkit.backup import Point, Repository, open_point
from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.vsphere.session import Session

MIB = 1 << 20


class Listener:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.last: dict[str, tuple[int, int]] = {}

    def step(self, text: str) -> None:
        self.steps.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.last[what] = (done, total)


class Guest:
    """Writes random data through a machine's running disk and knows what the disk must hold."""

    def __init__(self, host: SimulatedHost, name: str = "vm1", key: int = 2000, *, seed: int = 7) -> None:
        self._machine = host.machine(name)
        self._key = key
        self._random = random.Random(seed)
        self.device = self._machine.disk(key).guest()
        self.content = bytearray(self.device.capacity)

    def write(self, offset: int, data: bytes) -> None:
        self.device.write_from(offset, data)
        self.content[offset : offset + len(data)] = data

    def scribble(self, writes: int = 20, longest: int = 300_000) -> None:
        for _ in range(writes):
            length = 512 * self._random.randint(1, longest // 512)
            offset = 512 * self._random.randrange((len(self.content) - length) // 512 + 1)
            # A fifth of the writes are zeroes: a grain that becomes zero must be restored as zero.
            zero = self._random.random() < 0.2
            self.write(offset, bytes(length) if zero else self._random.randbytes(length))

    def now(self) -> bytes:
        return bytes(self.content)


@contextmanager
def session_of(host: SimulatedHost) -> Iterator[Session]:
    trust = Trust(sha256=host.thumbprint_sha256)
    with Session.login(
        host.host, host.port, host.user, host.password, trust, sleep=lambda seconds: None
    ) as session:
        yield session


def new_repository(folder: Path) -> Repository:
    folder.mkdir(parents=True, exist_ok=True)
    return Repository.create(FolderStore(folder))


def content_of(device: BlockDevice) -> bytes:
    data = bytearray(device.capacity)
    view = memoryview(data)
    for offset in range(0, len(data), MIB):
        device.read_into(offset, view[offset : offset + MIB])
    return bytes(data)


def point_content(repository: Repository, point: Point, key: int = 2000) -> bytes:
    with open_point(repository, point, key) as device:
        return content_of(device)


def snapshots_left(host: SimulatedHost, name: str = "vm1") -> list[str]:
    return [snapshot.name for snapshot in host.machine(name).snapshots()]
