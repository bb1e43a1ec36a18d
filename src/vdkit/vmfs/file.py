"""A file on VMFS as a read-only device."""

from __future__ import annotations

from collections.abc import Iterator

from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.errors import NotSupported
from vdkit.vmfs.blockmap import BlockMap
from vdkit.vmfs.bulk import State

_ZEROES = bytes(1 << 20)


class VmfsFile(BaseDevice):
    """Made by :meth:`vdkit.vmfs.volume.Volume.file`. Does not own the volume."""

    def __init__(
        self,
        volume: BlockDevice,
        name: str,
        *,
        blocks: BlockMap | None = None,
        length: int = 0,
        resident: bytes = b"",
    ) -> None:
        """Either ``blocks`` and ``length``, or the ``resident`` bytes themselves."""
        super().__init__(name=name, capacity=len(resident) if blocks is None else length, sector_size=1)
        self._volume = volume
        self.blocks = blocks
        self._resident = resident

    def _read_into(self, offset: int, view: memoryview) -> None:
        if self.blocks is None:
            view[:] = self._resident[offset : offset + len(view)]
            return
        for run in self.blocks.runs(offset, len(view)):
            part = view[run.offset - offset : run.offset - offset + run.length]
            match run.state:
                case State.DATA if run.volume_offset is not None:
                    self._volume.read_into(run.volume_offset, part)
                case State.HOLE | State.ZERO:
                    _clear(part)
                case _:
                    raise NotSupported(
                        f"{self.name}: at offset {run.offset} a block is partly to be zeroed, in a way that "
                        "only a host can tell",
                        remedy="read this disk through the host",
                    )

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self.blocks is None:
            yield Extent(offset, length, ExtentKind.DATA)
            return
        for run in self.blocks.runs(offset, length):
            zero = run.state in (State.HOLE, State.ZERO)
            yield Extent(run.offset, run.length, ExtentKind.ZERO if zero else ExtentKind.DATA)


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = view[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
