"""What readers must find on a fixture volume: by path, bytes and where they lie.

For :mod:`vdkit.testing.vmfsimage`, which makes both.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vdkit.testing.vmfslayout import VmfsOptions

#: What lies where nothing may be read: under blocks to be zeroed, behind the end of files.
STALE: Final = b"\xee"
#: Files up to this size have a hash in the manifest.
WHOLE: Final = 256 << 20
_TYPES: Final = {2: "directory", 3: "file", 4: "symlink", 6: "rdm"}
_STATES: Final = {"d": "data", "D": "data", "c": "data", "z": "zero", "p": "partial"}


def random_block(seed: int, path: str, index: int, size: int) -> bytes:
    return random.Random(f"{seed}/{path}/{index}").randbytes(size)


class Run(NamedTuple):
    """``volume_offset`` is None for a hole."""

    offset: int
    length: int
    state: str
    volume_offset: int | None
    shared: bool = False


class Block(NamedTuple):
    """An allocated block; ``content`` is None if it reads as zeroes."""

    number: int
    letter: str
    volume_offset: int
    content: Callable[..., bytes] | None
    seed: int
    path: str

    def bytes(self, size: int) -> bytes:
        if self.content is None:
            return bytes(size)
        if self.content is random_block:
            return random_block(self.seed, self.path, self.number, size)
        return self.content(self.number).ljust(size, STALE)


@dataclass(frozen=True, slots=True)
class Expected:
    """One file or folder. ``type`` as in its descriptor, which is at ``descriptor_at`` of the volume."""

    path: str
    type: int
    length: int
    blocks: tuple[Block, ...]
    descriptor_at: int
    block_size: int = 0
    inline: bytes | None = None

    def pieces(self, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The content but for holes, ascending: all that has bytes in ``[offset, end)``."""
        if self.inline is not None:
            yield 0, self.inline
        stop = self.length if end is None else end
        for block in self.blocks:
            start = block.number * self.block_size
            if start < stop and start + self.block_size > offset:
                yield start, block.bytes(self.block_size)[: self.length - start]

    def read(self, offset: int, length: int) -> bytes:
        """Any part of the content."""
        made = bytearray(length)
        for start, data in self.pieces(offset, offset + length):
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                made[low - offset : high - offset] = data[low - start : high - start]
        return bytes(made)

    def runs(self) -> list[Run]:
        """The map that a reader must make of a file in blocks, neighbours joined."""
        made: list[Run] = []
        position = 0
        for block in self.blocks:
            start = block.number * self.block_size
            if start > position:
                made.append(Run(position, start - position, "hole", None))
            length = min(self.block_size, self.length - start)
            run = Run(start, length, _STATES[block.letter], block.volume_offset, block.letter == "c")
            last = made[-1] if made else None
            if (
                last is not None
                and last.volume_offset is not None
                and (last.state, last.shared) == (run.state, run.shared)
                and last.volume_offset + last.length == run.volume_offset
            ):
                made[-1] = last._replace(length=last.length + length)
            else:
                made.append(run)
            position = start + length
        if position < self.length:
            made.append(Run(position, self.length - position, "hole", None))
        return made

    def sha256(self) -> str:
        digest = hashlib.sha256()
        position = 0
        for start, data in self.pieces():
            digest.update(bytes(start - position) + data)
            position = start + len(data)
        digest.update(bytes(self.length - position))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything on a volume. ``place``: member and device offset of a byte of the volume."""

    options: VmfsOptions
    files: dict[str, Expected]
    place: Callable[[int], tuple[int, int]]

    def document(self) -> dict[str, Any]:
        """As JSON would have it, hashes and runs included."""
        found = {}
        for path, file in self.files.items():
            about: dict[str, Any] = {"type": _TYPES[file.type], "size": file.length}
            if file.block_size:
                about["runs"] = [run._asdict() for run in file.runs()]
            if file.type in (3, 4) and file.length <= WHOLE and "p" not in {b.letter for b in file.blocks}:
                about["sha256"] = file.sha256()
            found[path] = about
        return {"version": self.options.version, "label": self.options.label, "files": found}
