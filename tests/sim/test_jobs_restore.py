"""Restores to new machines and to files: the content comes back, and a failure leaves no half machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, content_of, new_repository, session_of

from vdkit.backup import Point, Repository
from vdkit.disklib.opening import open_local
from vdkit.errors import AlreadyExists, HostError, ObjectNotFound
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.restore import restore_file, restore_machine
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere.inventory import list_machines

pytestmark = pytest.mark.usefixtures("no_leaks")


def _backed_up(host: SimulatedHost, folder: Path) -> tuple[Repository, Point, bytes]:
    """A repository with a full and an incremental point, and the content at the second."""
    host.power_on_all()
    guest = Guest(host)
    guest.scribble()
    repository = new_repository(folder)
    with session_of(host) as session:
        backup_machine(session, "vm1", repository, Listener())
        guest.scribble()
        point = backup_machine(session, "vm1", repository, Listener()).point
    return repository, point, guest.now()


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
@pytest.mark.parametrize(("mode", "compression"), [("nbdssl", "none"), ("nbd", "zlib"), ("nbdssl", "skipz")])
def test_a_new_machine_has_the_content_of_the_point(
    simulated_host_factory: HostFactory, tmp_path: Path, personality: str, mode: str, compression: str
) -> None:
    host = simulated_host_factory(personality=personality)
    repository, point, wanted = _backed_up(host, tmp_path / "repo")
    with session_of(host) as session:
        result = restore_machine(
            session, repository, point, "back", Listener(), modes=mode, compression=compression, verify=True
        )
    assert result.machine.name == "back"
    restored = host.machine("back")
    assert not restored.powered_on
    with open_local(tmp_path / "simulated-host-1" / "back" / "back.vmdk") as disk:
        assert content_of(disk) == wanted


def test_a_name_that_is_taken_is_refused_and_left_alone(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    repository, point, wanted = _backed_up(host, tmp_path / "repo")
    with session_of(host) as session:
        with pytest.raises(AlreadyExists, match="choose another name"):
            restore_machine(session, repository, point, "vm1", Listener())
        with pytest.raises(ObjectNotFound, match="datastore1"):
            restore_machine(session, repository, point, "back", Listener(), datastore="elsewhere")
        assert [vm.name for vm in list_machines(session)] == ["vm1"]
    assert content_of(host.machine("vm1").disk(2000).guest()) == wanted


def test_a_failing_write_deletes_the_half_made_machine(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    repository, point, _ = _backed_up(host, tmp_path / "repo")
    host.set_data_faults(NfcFaults(write_error=(9, "datastore offline")))
    with session_of(host) as session:
        with pytest.raises(HostError, match="datastore offline"):
            restore_machine(session, repository, point, "back", Listener())
        assert [vm.name for vm in list_machines(session)] == ["vm1"]
    assert not (tmp_path / "simulated-host-1" / "back").exists()


def test_lost_connections_while_writing_lose_nothing(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    repository, point, wanted = _backed_up(host, tmp_path / "repo")
    cuts = [11, 12, 14]

    class CutsAgain(Listener):
        def warning(self, text: str) -> None:
            super().warning(text)
            after = cuts.pop(0) if cuts else None
            host.set_data_faults(None if after is None else NfcFaults(cut_after_messages=after))

    listener = CutsAgain()
    with session_of(host) as session:
        host.set_data_faults(NfcFaults(cut_after_messages=13))
        restore_machine(session, repository, point, "back", listener, verify=True, sleep=lambda seconds: None)
    assert cuts == []
    with open_local(tmp_path / "simulated-host-1" / "back" / "back.vmdk") as disk:
        assert content_of(disk) == wanted


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("kind", ["raw", "monolithicSparse", "streamOptimized", "vmfsThin"])
def test_a_file_of_each_type_has_the_content_of_the_point(
    simulated_host_factory: HostFactory, tmp_path: Path, kind: str
) -> None:
    host = simulated_host_factory()
    repository, point, wanted = _backed_up(host, tmp_path / "repo")
    target = tmp_path / ("disk.raw" if kind == "raw" else "disk.vmdk")
    restore_file(repository, point, 2000, target, Listener(), to=kind, verify=True)
    expected = tmp_path / "expected.raw"
    expected.write_bytes(wanted)
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw" if kind == "raw" else "vmdk", "-F", "raw", target, expected],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(AlreadyExists):
        restore_file(repository, point, 2000, target, Listener(), to=kind)
