"""The markers of a stream, one after the other, without opening the grains.

Source of facts: VMware's "Virtual Disk Format 5.0" and streams exported by ESXi.
"""

from __future__ import annotations

from vdkit.block.device import BlockDevice
from vdkit.vmdk import markers
from vdkit.vmdk.header import MAGIC, MAX_COMPRESSED_GRAIN_SECTORS
from vdkit.vmdk.inspect.headers import peek
from vdkit.vmdk.inspect.model import MarkerDump, Section, StreamDump
from vdkit.vmdk.kinds import SECTOR

#: Markers that are passed over, and those that are shown.
MAX_MARKERS = 1 << 21
MAX_SHOWN_MARKERS = 4096
#: Sectors in a row that are no marker, before the walk is given up.
MAX_UNKNOWN = 1 << 12

_NAMES = {
    markers.EOS: "EOS",
    markers.GT: "GT",
    markers.GD: "GD",
    markers.FOOTER: "FOOTER",
    markers.PROGRESS: "PROGRESS",
}


class _Walk:
    def __init__(self, file: BlockDevice, grain: int, capacity: int) -> None:
        self._file = file
        self._step = grain
        self._capacity = capacity
        self._largest = markers.largest_size(grain * SECTOR)
        self.shown: list[MarkerDump] = []
        self.problems: list[str] = []
        self.grains = 0
        self.packed = 0
        self._last_grain: MarkerDump | None = None
        self._in_run = False
        self._unknown = 0
        self._left_out = 0

    def run(self, position: int) -> bool:
        """True if the walk came to the end of the file."""
        for _ in range(MAX_MARKERS):
            data = peek(self._file, position * SECTOR, 16)
            if len(data) < 16:
                self._end_run()
                return True
            step = self._look(position, markers.parse(data))
            if self._unknown > MAX_UNKNOWN:
                self.problems.append(f"{MAX_UNKNOWN} sectors in a row before {position} are no markers")
                return False
            position += step
        self.problems.append(f"the walk ended after {MAX_MARKERS} markers, at sector {position}")
        self._end_run()
        return False

    def _look(self, position: int, marker: markers.Marker) -> int:
        if marker.size:
            plausible = (
                marker.size <= self._largest
                and marker.value % self._step == 0
                and marker.value < self._capacity
            )
            if not plausible:
                return self._strange(position)
            sectors = markers.record_sectors(marker.size)
            cut = (position + sectors) * SECTOR > self._file.capacity
            problem = "its data is cut off" if cut else ""
            self._grain(MarkerDump(position, "grain", marker.value, marker.size, problem))
            return sectors
        if marker.kind not in _NAMES or (marker.kind == markers.EOS and marker.value):
            return self._strange(position)
        self._end_run()
        if marker.kind == markers.EOS and self.shown and self.shown[-1].kind == "EOS":
            # Padding: zero sectors all look like end markers. The first one tells.
            self._unknown += 1
            return 1
        self._unknown = 0
        follows = marker.value if marker.kind in (markers.GT, markers.GD, markers.FOOTER) else 0
        problem = ""
        if (position + 1 + follows) * SECTOR > self._file.capacity:
            problem, follows = "what follows it is cut off", 0
        elif marker.kind == markers.GT and marker.value not in (0, 4):
            problem = "a grain table takes 4 sectors"
        elif marker.kind == markers.FOOTER and peek(self._file, (position + 1) * SECTOR, 4) != MAGIC:
            problem = "no footer behind it"
        self._show(MarkerDump(position, _NAMES[marker.kind], marker.value, 0, problem))
        return 1 + follows

    def _strange(self, position: int) -> int:
        self._end_run()
        if self._unknown == 0:
            self._show(MarkerDump(position, "unknown", 0, 0, "no marker"))
        self._unknown += 1
        return 1

    def _grain(self, marker: MarkerDump) -> None:
        self._unknown = 0
        self.grains += 1
        self.packed += marker.size
        if self._in_run and not marker.problem:
            self._last_grain = marker
            return
        self._end_run()
        self._show(marker)
        self._in_run = True

    def _end_run(self) -> None:
        if self._last_grain is not None:
            self._show(self._last_grain)
        self._last_grain, self._in_run = None, False

    def _show(self, marker: MarkerDump) -> None:
        if len(self.shown) < MAX_SHOWN_MARKERS:
            self.shown.append(marker)
        else:
            self._left_out += 1
            self.shown[-1] = marker

    def finish(self, *, complete: bool) -> StreamDump:
        if self._left_out:
            self.problems.append(f"{self._left_out} markers are left out of the list")
        return StreamDump(tuple(self.shown), self.grains, self.packed, complete, tuple(self.problems))


def dump_stream(file: BlockDevice, section: Section) -> StreamDump | None:
    """Walk the markers behind the header ``section``; None if its fields do not say where."""
    grain, capacity = section.value("grainSize"), section.value("capacity")
    overhead = section.value("overHead")
    if not grain or not capacity or grain > MAX_COMPRESSED_GRAIN_SECTORS or overhead is None:
        return None
    start = overhead if 0 < overhead * SECTOR < file.capacity else 1
    walk = _Walk(file, grain, capacity)
    return walk.finish(complete=walk.run(start))
