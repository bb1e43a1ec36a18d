"""Random reads of 4 KiB through the Python API, sparse disk, cached: beside dissect.hypervisor and pyvmdk.

Each library reads the same places in the order of one list, in this process; what they read is compared
first. The figure is reads per second of one thread.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyvmdk
from dissect.hypervisor.disk.vmdk import VMDK

from disks import allocated, real_disk
from harness import Benchmark, Job, Target, need, timed
from peers import qemu_convert, work_folder
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.vmdk import Disk, open_disk

SIZE = 4096
READS = 100_000
QUICK_READS = 20_000
CHECKED = 200
DISSECT = Target(8.0, speed=True)
PYVMDK = Target(20.0, speed=True)

Read = Callable[[int], bytes]


def places(disk: Disk, count: int) -> list[int]:
    """Offsets of whole blocks, spread evenly over what the disk holds."""
    dice = random.Random(count)
    held = [run for run in disk.extents() if run.kind is ExtentKind.DATA and run.length >= SIZE]
    chosen = dice.choices(held, [run.length for run in held], k=count)
    return [run.offset + dice.randrange(run.length // SIZE) * SIZE for run in chosen]


def in_turn(read: Callable[[int], object], offsets: list[int]) -> None:
    for offset in offsets:
        read(offset)


def main() -> int:
    bench = Benchmark("random", "random reads of 4 KiB beside dissect.hypervisor and pyvmdk")
    need("qemu-img")
    for package in ("dissect.hypervisor", "libvmdk-python"):
        bench.peer_is(package, version(package))
    raw = real_disk(quick=bench.quick)
    with tempfile.TemporaryDirectory(prefix="vdkit-bench-", dir=work_folder(2 * allocated(raw))) as folder:
        path = Path(folder) / "sparse.vmdk"
        qemu_convert(raw, "raw", path, "monolithicSparse").run()
        with open_disk(FolderStore(folder), path.name) as disk:
            offsets = places(disk, QUICK_READS if bench.quick else READS)
            buffer = bytearray(SIZE)

            def ours() -> None:
                read_into, held = disk.read_into, buffer
                for offset in offsets:
                    read_into(offset, held)

            def read(offset: int) -> bytes:
                disk.read_into(offset, buffer)
                return bytes(buffer)

            stream = VMDK(path).open() if hasattr(VMDK, "open") else VMDK(path)
            handle = pyvmdk.open(str(path))
            handle.open_extent_data_files()

            def dissect(offset: int) -> bytes:
                stream.seek(offset)
                return bytes(stream.read(SIZE))

            def libvmdk(offset: int) -> bytes:
                return bytes(handle.read_buffer_at_offset(SIZE, offset))

            check(read, [dissect, libvmdk], offsets[:CHECKED])
            moved = len(offsets) * SIZE
            notes = [f"{len(offsets)} reads"]
            mine = Job("vdkit", lambda: timed(ours))
            for name, call, target in (("dissect", dissect, DISSECT), ("pyvmdk", libvmdk, PYVMDK)):
                peer = Job(name, lambda call=call: timed(lambda: in_turn(call, offsets)))
                bench.compare(
                    f"random reads of 4 KiB, {name}", mine, peer, target, bytes_moved=moved, notes=notes
                )
    return bench.finish()


def check(ours: Read, others: list[Read], offsets: list[int]) -> None:
    for offset in offsets:
        expected = ours(offset)
        if any(other(offset) != expected for other in others):
            raise SystemExit(f"the libraries read different bytes at {offset}")


if __name__ == "__main__":
    sys.exit(main())
