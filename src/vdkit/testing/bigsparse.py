"""A large hosted sparse disk in no time: header and tables are written, the grains stay holes of the file.

For measuring what depends on tables only: opening, mapping, checking.
"""

from __future__ import annotations

from vdkit.block.store import Store
from vdkit.errors import UsageError
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.sparse import new_header, write_new
from vdkit.vmdk.template import base_ddb, new_descriptor


def write_big_sparse(store: Store, name: str, capacity: int, grains: int, *, seed: int = 1) -> None:
    """``grains`` of the disk, chosen at random, have a place, in the order of a guest that wrote in runs."""
    import numpy as np

    sectors = capacity // SECTOR
    header = new_header(sectors)
    if grains > header.grains:
        raise UsageError(f"{name}: a disk of {capacity} bytes has {header.grains} grains, not {grains}")
    dice = np.random.default_rng(seed)
    # Runs of 64 grains, their order shuffled: what a file system of some age looks like.
    runs = np.array_split(np.arange(header.grains, dtype=np.int64), max(1, header.grains // 64))
    order = np.concatenate([runs[i] for i in dice.permutation(len(runs))])[:grains]
    entries = np.zeros(header.tables * 512, "<u4")
    entries[order] = header.overhead + np.arange(grains, dtype=np.int64) * header.grain
    descriptor = new_descriptor(
        where=name,
        create_type="monolithicSparse",
        extents=[ExtentLine(Access.RW, sectors, "SPARSE", name)],
        cid=1,
        ddb=base_ddb(sectors, "lsilogic", 1),
    )
    with store.create(name) as file:
        write_new(file, header, descriptor.to_bytes())
        data = entries.tobytes()
        for directory in (header.redundant_directory, header.directory):
            file.write_from((directory + header.directory_sectors) * SECTOR, data)
        file.resize((header.overhead + grains * header.grain) * SECTOR)
