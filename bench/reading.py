"""Reading disks over the data port, as the network benchmarks do it: by the copy engine, into nothing."""

from __future__ import annotations

from pathlib import Path

from harness import Job, Run, timed
from vdkit.block.compare import compare
from vdkit.block.copy import copy
from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.block.local import FolderStore
from vdkit.transports.nfc import DEFAULT_WINDOW, CompressionName, Mode, NfcDisk, NfcTarget, open_nfc


class Null(BaseWritableDevice):
    """Takes everything and keeps nothing."""

    def _read_into(self, offset: int, view: memoryview) -> None:
        raise SystemExit(f"nobody reads the sink: {len(view)} bytes at {offset}")

    def _write_from(self, offset: int, view: memoryview) -> None:
        """Gone."""

    def _flush(self) -> None:
        """Nothing is kept."""


def read_all(disk: NfcDisk, sink: type[Null] = Null, ranges: RangeSet | None = None) -> Run:
    """Read the disk with the copy engine, which is what every command of vdkit reads with."""
    with sink(name="sink", capacity=disk.capacity, writable=True) as taking:
        return timed(lambda: copy(disk, taking, ranges=ranges))


def read_job(
    name: str,
    target: NfcTarget,
    mode: Mode,
    *,
    window: int = DEFAULT_WINDOW,
    request_size: int | None = None,
    compression: CompressionName = "none",
    sink: type[Null] = Null,
    ranges: RangeSet | None = None,
) -> Job:
    """Connecting does not count."""

    def run() -> Run:
        with open_nfc(
            target, mode=mode, window=window, request_size=request_size, compression=compression
        ) as disk:
            return read_all(disk, sink, ranges)

    return Job(name, run)


def data_ranges(image: Path, wanted: int | None = None) -> RangeSet:
    """Where a raw image has data; of it the first ``wanted`` bytes, or all."""
    found: list[tuple[int, int]] = []
    left = image.stat().st_size if wanted is None else wanted
    with FolderStore(image.parent).open(image.name) as disk:
        for extent in disk.extents(0, disk.capacity):
            if extent.kind is ExtentKind.DATA and left > 0:
                step = min(extent.length, left)
                found.append((extent.offset, step))
                left -= step
    return RangeSet(found)


def check_content(target: NfcTarget, image: Path, mode: Mode, compression: CompressionName = "none") -> None:
    """End unless the disk is the image, byte for byte: a fast wrong answer is none."""
    with (
        FolderStore(image.parent).open(image.name) as truth,
        open_nfc(target, mode=mode, compression=compression) as disk,
    ):
        difference = compare(truth, disk)
    if difference is not None:
        raise SystemExit(f"{mode} {compression}: not what the image holds: {difference}")
