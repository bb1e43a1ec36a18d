"""A remote disk through a handle in VixDiskLib's shape, and cloned to local ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from simulated_login import logged_in

from vdkit.disklib.comparing import compare_devices
from vdkit.disklib.configuration import parse_configuration
from vdkit.disklib.connection import Connection, connect, connection_of
from vdkit.disklib.constants import DiskType, OpenFlags
from vdkit.disklib.hosted import CreateParams
from vdkit.errors import KeyNotFound, NotSupported, OutOfRange, VixError
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import DISK_BYTES
from vdkit.vsphere.inventory import find_machine

MIB = 1 << 20


def test_a_remote_handle_and_its_clones(simulated_host: SimulatedHost, tmp_path: Path) -> None:
    with logged_in(simulated_host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        assert connection.vm is not None
        path = connection.vm.disks[0].file
        blocks = {sector: random.Random(sector).randbytes(MIB) for sector in (0, 20480, 65536)}
        told: list[VixError | None] = []
        with connection.open(path, OpenFlags.COMPRESSION_ZLIB) as disk:
            for sector, data in blocks.items():
                disk.write_async(sector, data, told.append)
            disk.flush()
            assert told == [None] * 3
            assert disk.read(20480, 2048) == blocks[20480]
            info = disk.get_info()
            assert (info.capacity_sectors, info.num_links) == (DISK_BYTES // 512, 1)
            assert disk.read_metadata("adapterType") == "lsilogic"
            with pytest.raises(KeyNotFound):
                disk.read_metadata("nothing")
            with pytest.raises(NotSupported):
                disk.write_metadata("toolsVersion", "1")
            with pytest.raises(NotSupported):
                disk.shrink()
            with pytest.raises(OutOfRange):
                disk.read(DISK_BYTES // 512, 1)
        local = connect()
        for kind in (DiskType.MONOLITHIC_SPARSE, DiskType.STREAM_OPTIMIZED, DiskType.VMFS_FLAT):
            target = tmp_path / f"{kind.name}.vmdk"
            local.clone(target, connection, path, CreateParams(kind))
            with local.open(target) as copy, connection.open(path) as original:
                assert copy.get_transport_mode() == "file"
                assert original.get_transport_mode() == "nbdssl"
                assert compare_devices(copy, original).same
                starts = [block.offset for block in original.query_allocated_blocks()]
                assert set(blocks) <= {start // 2048 * 2048 for start in starts} | set(starts)


def test_whole_disks_need_a_local_connection(simulated_host: SimulatedHost, tmp_path: Path) -> None:
    with logged_in(simulated_host) as session:
        remote: Connection = connection_of(session, find_machine(session, "vm1"))
        assert remote.vm is not None
        path = remote.vm.disks[0].file
        for act in (
            lambda: remote.create("x.vmdk", CreateParams(capacity_sectors=8)),
            lambda: remote.grow(path, 1 << 30),
            lambda: remote.unlink(path),
            lambda: remote.rename(path, "y"),
            lambda: remote.check_repair(path),
            lambda: remote.clone(path, remote, path, CreateParams()),
        ):
            with pytest.raises(NotSupported, match="local connection") as caught:
                act()
            assert caught.value.code.number == 6
        for flags in (OpenFlags(0x100), OpenFlags.COMPRESSION_ZLIB | OpenFlags.COMPRESSION_SKIPZ):
            with pytest.raises(NotSupported, match="compression"):
                remote.open(path, flags)


def test_the_time_outs_of_a_configuration_are_used() -> None:
    configuration = parse_configuration("vixDiskLib.nfc.ReadTimeoutMs=1500")
    assert connect(configuration=configuration).local
    assert configuration.timeouts.read == 1.5
