"""Whether the map of a file is sound: what no reader must find out only in the middle of a copy.

Source of facts: our notes on VMFS, sections 2.9 and 3.1, step 5.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vdkit.vmfs.bulk import Run, State
from vdkit.vmfs.descriptor import Descriptor, FileType, Layout
from vdkit.vmfs.volume import Volume

#: Runs of one file that are kept to be compared with each other; 16 bytes each.
MAX_CHECKED: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Checked:
    """``sizes`` are bytes by state. ``problems`` is empty for a sound file."""

    runs: int
    sizes: dict[str, int]
    shared: int
    problems: tuple[str, ...]


def check_file(volume: Volume, descriptor: Descriptor, path: str) -> Checked:
    """Walks the whole map. Raises what reading the map raises: CorruptDisk, UnsupportedVersion."""
    sizes = dict.fromkeys((state.value for state in State), 0)
    if descriptor.layout in (Layout.NONE, Layout.RESIDENT):
        return Checked(0, sizes, 0, ())
    found = _Counts(descriptor.block_size, sizes)
    for run in volume.blocks(descriptor, path).runs(0, descriptor.length):
        found.add(run)
        if found.allocated > volume.device.capacity:
            return Checked(found.count, sizes, found.shared, ("it has more blocks than its volume",))
    problems = list(found.differences(descriptor))
    if found.count > MAX_CHECKED:
        problems.append(f"its map has {found.count} runs, too many to compare with each other")
    elif descriptor.type is not FileType.SYSTEM:
        own = _own_areas(volume)
        problems += found.overlaps(own)
    return Checked(found.count, sizes, found.shared, tuple(problems))


class _Counts:
    def __init__(self, block: int, sizes: dict[str, int]) -> None:
        self._block = block
        self._sizes = sizes
        self._starts = array("Q")
        self._ends = array("Q")
        self.count = 0
        self.shared = 0
        self._blocks = dict.fromkeys(State, 0)
        self._shared_blocks = 0

    @property
    def allocated(self) -> int:
        return sum(self._sizes.values()) - self._sizes[State.HOLE.value]

    def add(self, run: Run) -> None:
        self.count += 1
        self._sizes[run.state.value] += run.length
        blocks = -(-run.length // self._block)
        self._blocks[run.state] += blocks
        if run.shared:
            self.shared += run.length
            self._shared_blocks += blocks
        if run.volume_offset is not None and self.count <= MAX_CHECKED:
            self._starts.append(run.volume_offset)
            self._ends.append(run.volume_offset + run.length)

    def differences(self, descriptor: Descriptor) -> Iterator[str]:
        """What the descriptor counts otherwise. In what units it counts large blocks is not known."""
        if descriptor.large_blocks:
            return
        zeroed = self._blocks[State.ZERO] + self._blocks[State.PARTIAL]
        for name, counted, told in (
            ("allocated", zeroed + self._blocks[State.DATA], descriptor.blocks),
            ("to be zeroed", zeroed, descriptor.zeroed_blocks),
            ("copy on write", self._shared_blocks, descriptor.shared_blocks),
        ):
            if counted != told:
                yield f"its descriptor counts {told} blocks as {name}, its map {counted}"

    def overlaps(self, own: list[tuple[int, int, str]]) -> Iterator[str]:
        """Bytes of the volume that are told twice, or that belong to the volume's own files."""
        import numpy as np

        if not self._starts:
            return
        starts = np.frombuffer(self._starts, dtype=np.uint64)
        order = np.argsort(starts)
        starts, ends = starts[order], np.frombuffer(self._ends, dtype=np.uint64)[order]
        for index in np.flatnonzero(starts[1:] < ends[:-1])[:3].tolist():
            yield f"two of its blocks lie at volume offset {int(starts[index + 1])}"
        if bool((starts[1:] < ends[:-1]).any()):
            return
        for start, end, name in own:
            at = int(np.searchsorted(ends, start, side="right"))
            if at < len(starts) and int(starts[at]) < end:
                yield f"its block at volume offset {int(starts[at])} lies in {name}"


def _own_areas(volume: Volume) -> list[tuple[int, int, str]]:
    """Where the volume's own files lie, but for what they give to others: the blocks of sub-blocks."""
    found = []
    root = volume.resolve("")
    for entry in volume.entries(root, ""):
        if entry.type != FileType.SYSTEM or entry.name == ".sbc.sf":
            continue
        descriptor = volume.child(entry, entry.name)
        if descriptor.layout in (Layout.NONE, Layout.RESIDENT):
            continue
        for run in volume.blocks(descriptor, entry.name).runs(0, descriptor.length):
            if run.volume_offset is not None:
                found.append((run.volume_offset, run.volume_offset + run.length, entry.name))
    return found
