"""A guest that changes real files on a simulated disk.

There is no operating system in the simulated machine. What a guest's file system would do is done by
e2fsprogs on a raw copy of the disk, and the blocks that thereby became different, and only those, are then
written to the guest's device, 4 KiB each, in shuffled order, as a write-back cache would. So allocation,
bitmaps, directories and file data change as on a real disk. What it does not show: the journal (``debugfs``
writes without it), the order that a real kernel keeps, and writes of blocks that happen to keep their
content.

Whole-disk ext2, ext3 and ext4 only, without a partition table. The programs are run, never linked.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.block.local import open_file
from vdkit.errors import NotSupported, StoreError, UsageError

#: Bytes that one write of the guest carries.
BLOCK = 4096
#: Bytes compared at a time.
_STEP = 1 << 20
#: Writes handed over together.
_BATCH = 256
#: Seconds that a program of e2fsprogs may take.
_PATIENCE = 300
_MORE_FOLDERS = "/usr/sbin:/sbin"


class GuestFileSystem:
    """The file system on a disk, seen from its guest. A context manager; ``close`` removes the raw copy.

    ``seed`` decides the order of writes. Errors: NotSupported if e2fsprogs is missing, StoreError if one of
    its programs fails.
    """

    def __init__(self, device: WritableDevice, *, folder: str | Path | None = None, seed: int = 0) -> None:
        """``device`` is the guest's disk; it stays the caller's. ``folder`` is where the raw copy lies."""
        self._device = device
        self._random = random.Random(seed)
        self._work = tempfile.TemporaryDirectory(prefix="vdkit-guest-", dir=folder)
        self._shadow = Path(self._work.name) / "disk.raw"
        # What the disk holds, so that finding the changed blocks does not read all of it once more.
        self._known = Path(self._work.name) / "known.raw"
        try:
            for path in (self._shadow, self._known):
                with path.open("wb") as made:
                    made.truncate(device.capacity)
            with open_file(self._shadow, writable=True) as target:
                copy(device, target, target_is_zero=True)
            self._remember()
        except BaseException:
            self._work.cleanup()
            raise

    def close(self) -> None:
        self._work.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self) -> None:
        """The disk and the raw copy are equal now."""
        with open_file(self._shadow) as shadow, open_file(self._known, writable=True) as known:
            copy(shadow, known)

    # -- what a guest does -----------------------------------------------------------------------

    def format(self, source: str | Path | None = None, *, kind: str = "ext4", label: str = "guest") -> int:
        """Make a new file system, filled with the files of the folder ``source``; returns the bytes
        written.
        """
        command = ["mke2fs", "-q", "-F", "-t", kind, "-b", str(BLOCK), "-L", label]
        if source is not None:
            command += ["-d", str(source)]
        run(*command, str(self._shadow))
        with open_file(self._shadow) as shadow:
            result = copy(shadow, self._device)
        self._device.flush()
        self._remember()
        return result.written

    def write_file(self, path: str, data: bytes) -> None:
        """Put a file; one that exists is replaced."""
        local = Path(self._work.name) / "content"
        local.write_bytes(data)
        try:
            script = [f"write {local} {_quoted(path)}"]
            if self.exists(path):
                script.insert(0, f"rm {_quoted(path)}")
            self.run(script)
        finally:
            local.unlink()

    def make_folder(self, path: str) -> None:
        self.run([f"mkdir {_quoted(path)}"])

    def remove(self, path: str) -> None:
        """A file."""
        self.run([f"rm {_quoted(path)}"])

    def remove_folder(self, path: str) -> None:
        """An empty folder."""
        self.run([f"rmdir {_quoted(path)}"])

    def exists(self, path: str) -> bool:
        return "File not found" not in run("debugfs", "-R", f"stat {_quoted(path)}", str(self._shadow)).stderr

    def read_file(self, path: str) -> bytes:
        local = Path(self._work.name) / "read"
        try:
            self._debugfs([f"dump {_quoted(path)} {local}"], write=False)
            return local.read_bytes()
        finally:
            local.unlink(missing_ok=True)

    def run(self, script: Iterable[str]) -> int:
        """Any ``debugfs`` commands together, then the changed blocks to the disk; returns the bytes
        written.
        """
        self._debugfs(list(script), write=True)
        return self.write_back()

    def check(self) -> str:
        """``e2fsck -fn`` of the guest's view; its output. Raises StoreError if anything is wrong."""
        return check(self._shadow)

    # -- the work --------------------------------------------------------------------------------

    def _debugfs(self, script: list[str], *, write: bool) -> None:
        if any("\n" in line for line in script):
            raise UsageError("a debugfs command is one line")
        lines = Path(self._work.name) / "script"
        lines.write_text("\n".join(script) + "\n")
        done = run("debugfs", *(["-w"] if write else []), "-f", str(lines), str(self._shadow))
        # It ends with 0 whatever happens; what went wrong is on the error output, after its own name.
        wrong = [line for line in done.stderr.splitlines() if line and not line.startswith("debugfs ")]
        if wrong:
            raise StoreError(f"{self._device.name}: debugfs: {'; '.join(wrong)}")

    def write_back(self) -> int:
        """Write every block that has changed in the raw copy to the disk; returns the bytes written."""
        with open_file(self._shadow) as shadow, open_file(self._known, writable=True) as known:
            changed = list(_differences(shadow, known))
            self._random.shuffle(changed)
            for start in range(0, len(changed), _BATCH):
                pieces = []
                for offset in changed[start : start + _BATCH]:
                    buffer = bytearray(min(BLOCK, shadow.capacity - offset))
                    shadow.read_into(offset, buffer)
                    pieces.append((offset, buffer))
                self._device.write_many(pieces)
                known.write_many(pieces)
            self._device.flush()
            return sum(min(BLOCK, shadow.capacity - offset) for offset in changed)


def _differences(one: BlockDevice, other: BlockDevice) -> Iterator[int]:
    """Offsets of the blocks that differ; where both say that they are zero, nothing is read."""
    capacity = one.capacity
    held = RangeSet.from_extents(one.extents(), ExtentKind.DATA) | RangeSet.from_extents(
        other.extents(), ExtentKind.DATA
    )
    for offset, length in held.aligned(BLOCK, capacity).split(_STEP):
        mine, theirs = bytearray(length), bytearray(length)
        one.read_into(offset, mine)
        other.read_into(offset, theirs)
        if mine == theirs:
            continue
        for at in range(0, length, BLOCK):
            if mine[at : at + BLOCK] != theirs[at : at + BLOCK]:
                yield offset + at


def check(image: str | Path) -> str:
    """``e2fsck -fn`` on a raw image. Raises StoreError if anything is wrong with its file system."""
    done = run("e2fsck", "-fn", str(image), good=(0, 1, 2, 4, 8, 12))
    if done.returncode != 0:
        raise StoreError(f"{image}: e2fsck found errors: {done.stdout.strip()[-2000:]}")
    return done.stdout


def run(program: str, *arguments: str, good: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """A program of e2fsprogs, with its output. Raises NotSupported or StoreError."""
    found = shutil.which(program) or shutil.which(program, path=_MORE_FOLDERS)
    if found is None:
        raise NotSupported(f"{program} is not installed", remedy="install the package e2fsprogs")
    try:
        done = subprocess.run(
            [found, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"{program} did not end within {_PATIENCE} seconds") from error
    if done.returncode not in good:
        raise StoreError(f"{program} failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done


def _quoted(path: str) -> str:
    if '"' in path or "\n" in path or not path.startswith("/"):
        raise UsageError(f"{path!r} is not an absolute path without quotes")
    return f'"{path}"'
