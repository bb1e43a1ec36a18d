"""Rows of VDDK's release notes that need a host and have no better place (see docs/explanation)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, session_of

from vdkit.disklib.connection import ConnectParams, connect
from vdkit.disklib.constants import DiskType
from vdkit.disklib.handle import DiskHandle
from vdkit.disklib.hosted import CreateParams
from vdkit.errors import HostError, VixError
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.restore import restore_machine
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere.inventory import find_machine

MIB = 1 << 20
PASSWORDS = ("p@ss", "@", "a@b@c:d/e", "DOMAIN\\user%40x", "wörd & <tag> 'q' \"dq\"", " spaces ")


def params(host: SimulatedHost) -> ConnectParams:
    return ConnectParams(
        host=host.host,
        port=host.port,
        user=host.user,
        password=host.password,
        trust=Trust(sha256=host.thumbprint_sha256),
        vm="vm1",
    )


@pytest.mark.parametrize("password", PASSWORDS)
def test_row_e11_a_clone_works_with_any_password(
    simulated_host_factory: HostFactory, tmp_path: Path, password: str
) -> None:
    """With an at-sign in the password, cloning from a host failed."""
    host = simulated_host_factory(password=Secret(password), user="back@up.local")
    with connect(params(host)) as source, connect() as local:
        assert source.vm is not None
        path = source.vm.disks[0].file
        with source.open(path, read_only=False) as disk:
            disk.write_from(MIB, b"cloned!!" * 64)
        local.clone(tmp_path / "clone.vmdk", source, path, CreateParams(DiskType.MONOLITHIC_SPARSE))
        with local.open(tmp_path / "clone.vmdk") as copy:
            found = bytearray(512)
            copy.read_into(MIB, found)
            assert found == b"cloned!!" * 64


def our_threads() -> set[threading.Thread]:
    """Without those of the simulated host, which runs in the same process."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("sim-")}


@pytest.mark.usefixtures("no_leaks")
def test_row_d7_no_thread_outlives_a_session_over_the_network(simulated_host: SimulatedHost) -> None:
    """Threads of VDDK were left after Exit, and some programs crashed at their end."""
    before = our_threads()
    with connect(params(simulated_host)) as connection:
        assert connection.vm is not None
        for _ in range(3):
            with connection.open(connection.vm.disks[0].file) as disk:
                disk.read_into(0, bytearray(MIB))
                ended: list[object] = []
                disk.read_async(0, 64, bytearray(64 * 512), ended.append)
                disk.wait()
                assert ended == [None]
    assert our_threads() == before


def test_row_d11_over_the_network_each_request_ends_with_the_error_it_met(
    simulated_host_factory: HostFactory,
) -> None:
    """An I/O error of an asynchronous request was reported as a cancellation."""
    bad = ((8 * MIB, 4096),)
    faults = NfcFaults(read_error_ranges=bad, write_error_ranges=bad)
    host = simulated_host_factory(scenario=Scenario(nfc=faults))
    with connect(params(host)) as connection:
        assert connection.vm is not None
        with connection.open(connection.vm.disks[0].file, read_only=False) as disk:
            for writing in (False, True):
                ended = _ends_of_requests(disk, writing=writing)
                assert [offset for offset, error in ended if error is not None] == [8 * MIB]
                assert sorted(offset for offset, _ in ended) == list(range(0, 16 * MIB, 2 * MIB))
                (error,) = (error for _, error in ended if error is not None)
                assert isinstance(error, HostError)
                assert "Input/output error" in str(error)


def _ends_of_requests(disk: DiskHandle, *, writing: bool) -> list[tuple[int, VixError | None]]:
    """Offset and error of each completion, of requests that are all under way together."""
    ended: list[tuple[int, VixError | None]] = []
    for offset in range(0, 16 * MIB, 2 * MIB):

        def tell(error: VixError | None, offset: int = offset) -> None:
            ended.append((offset, error))

        if writing:
            disk.write_async(offset // 512, b"x" * 65536, tell)
        else:
            disk.read_async(offset // 512, 128, bytearray(65536), tell)
    disk.wait()
    return ended


def test_row_c3_row_d5_a_restore_makes_no_snapshot(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    """A snapshot before a restore was demanded, and harms on virtual volumes: only the leaf is written."""
    refused = dict.fromkeys(("CreateSnapshot_Task", "CreateSnapshotEx_Task"), "vim.fault.SnapshotFault")
    host = simulated_host_factory(scenario=Scenario())
    host.power_on_all()
    guest = Guest(host)
    guest.scribble()
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        point = backup_machine(session, "vm1", repository, Listener()).point
        host.scenario.call_errors.update(refused)
        done = restore_machine(session, repository, point, "back", Listener(), verify=True)
        disk = find_machine(session, "back").disks[0]
    assert done.written > 0
    assert disk.parents == ()
    assert list(host.machine("back").snapshots()) == []
