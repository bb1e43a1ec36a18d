"""What users of other programs met, thread by thread (docs/explanation/users-threads.md), played here.

Rows that a test elsewhere shows under its own name are not repeated.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_helpers import Guest, Listener, content_of, new_repository, point_content, session_of, snapshots_left

from clitools import Vdkit
from vdkit.backup import Kind
from vdkit.block.compare import compare
from vdkit.block.extent import RangeSet
from vdkit.disklib.connection import ConnectParams, connect, connection_of
from vdkit.disklib.modes import REMOTE_MODES
from vdkit.disklib.remote import Retry
from vdkit.errors import TooManyConnections, TransportError, VerifyFailed, VixError
from vdkit.jobs import restore as restore_job
from vdkit.jobs.backup import backup_machine
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import DISK_BYTES, HostFactory
from vdkit.transports import nfc
from vdkit.vsphere import snapshots
from vdkit.vsphere.inventory import find_machine

MIB = 1 << 20
TIB = 1 << 40
PATH = "[datastore1] vm1/vm1.vmdk"


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, simulated_host: SimulatedHost, tmp_path: Path) -> Vdkit:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for key, value in simulated_host.environment().items():
        monkeypatch.setenv(key, value)
    return Vdkit(monkeypatch)


def params(host: SimulatedHost, **changes: Any) -> ConnectParams:
    fields: dict[str, Any] = {
        "host": host.host,
        "port": host.port,
        "user": host.user,
        "password": host.password,
        "trust": Trust(sha256=host.thumbprint_sha256),
        "vm": "vm1",
        **changes,
    }
    return ConnectParams(**fields)


def power_cycle(host: SimulatedHost, before: Callable[[], None] = lambda: None) -> None:
    machine = host.machine("vm1")
    machine.power_off()
    before()
    machine.power_on()


# -- change tracking -----------------------------------------------------------------------------


def test_row_15_a_reset_fails_the_job_rather_than_take_a_full(
    vdkit: Vdkit, simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """bareos#1791: a job whose tracking was reset should fail, not read everything without being asked."""
    machine = simulated_host.machine("vm1")
    machine.power_on()
    guest = Guest(simulated_host)
    guest.scribble()
    repository = tmp_path / "repo"
    assert vdkit("backup", "vm1", "--to", repository).code == 0
    machine.set_change_tracking(False)
    power_cycle(simulated_host, lambda: machine.set_change_tracking(True))
    guest.scribble()
    vdkit("backup", "vm1", "--to", repository).failed(13, "reset", "--on-reset")
    assert len(vdkit("points", repository, "--json").json["points"]) == 1
    done = vdkit("backup", "vm1", "--to", repository, "--on-reset", "full", "--json")
    assert done.last["point"]["kind"] == "full"
    assert any("reset" in warning for warning in done.last["warnings"])


def test_row_16_what_tracking_cannot_do_is_told_before_and_a_scan_is_not_silent(
    vdkit: Vdkit, simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """proxcenter-ui#662: no warning before the start, then hours of comparing without a word."""
    machine = simulated_host.machine("vm1")
    machine.power_on()
    guest = Guest(simulated_host)
    guest.scribble()
    before = vdkit("doctor", "vm1")
    assert "change tracking is off" in before.text
    repository = tmp_path / "repo"
    assert vdkit("backup", "vm1", "--to", repository, "--no-enable-tracking").code == 0
    guest.scribble()
    command = ("backup", "vm1", "--to", repository, "--no-enable-tracking", "--on-reset", "scan", "--json")
    done = vdkit(*command)
    messages = [json.loads(line) for line in done.out.splitlines()]
    assert any(one["message_type"] == "step" and "scan" in str(one) for one in messages)
    told = [one["what"] for one in messages if one["message_type"] == "status"]
    assert any("compare" in what for what in told), "the phase that compares says how far it is"


def test_row_17_a_last_pass_after_power_off_holds_every_write(
    simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """proxcenter-ui#395: a "live" mode lost writes that the guest had committed."""
    simulated_host.power_on_all()
    guest = Guest(simulated_host)
    repository = new_repository(tmp_path / "repo")

    class WritesAllTheTime(Listener):
        def progress(self, what: str, done: int, total: int) -> None:
            guest.scribble(3)

        def step(self, text: str) -> None:
            guest.scribble(3)

    read = []
    with session_of(simulated_host) as session:
        for _ in range(3):
            point = backup_machine(session, "vm1", repository, WritesAllTheTime()).point
            read.append(sum(disk.read for disk in point.manifest.disks))
        simulated_host.machine("vm1").power_off()
        last = backup_machine(session, "vm1", repository, Listener()).point
    assert last.manifest.kind is Kind.INCREMENTAL
    assert point_content(repository, last) == guest.now()
    assert read[-1] < DISK_BYTES


# -- what was read and stored ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_row_18_over_nfc_nothing_changes_at_two_tebibytes(
    simulated_host_factory: HostFactory, mode: str
) -> None:
    """bareos#2009: what was beyond 2 TB came back corrupt."""
    host = simulated_host_factory(machines=0)
    host.inventory.create_machine("vm1", "datastore1", [DiskSpec(capacity=3 * TIB)])
    content = random.Random(18)
    # Offsets whose number of sectors, or of bytes, needs one bit more than the one before.
    places = [0, (1 << 31) - 4096, (1 << 32) - 4096, TIB - 4096, 2 * TIB - 4096, 2 * TIB, 3 * TIB - 8192]
    wanted = {place: content.randbytes(8192) for place in places if place != 2 * TIB}
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH, read_only=False, transport_modes=mode) as disk:
            assert disk.capacity == 3 * TIB
            for place, data in wanted.items():
                disk.write_from(place, data)
            disk.flush()
        with connection.open(PATH, transport_modes=mode) as disk:
            for place, data in wanted.items():
                found = bytearray(3 * 8192)
                start = max(0, min(place - 8192, disk.capacity - len(found)))
                disk.read_into(start, found)
                around = bytearray(len(found))
                around[place - start : place - start + 8192] = data
                assert found == around, place
            data_at = RangeSet(
                [(e.offset, e.length) for e in disk.extents(0, disk.capacity) if e.kind.name == "DATA"]
            )
    for place in wanted:
        assert place in data_at or RangeSet([(place, 8192)]) & data_at, place
    assert data_at.total < TIB


def test_row_19_a_point_can_be_compared_with_its_source(
    simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """benji#136: restored data did not always match, and only a user who compared found out."""
    from vdkit.backup import open_point

    simulated_host.power_on_all()
    guest = Guest(simulated_host)
    guest.scribble()
    repository = new_repository(tmp_path / "repo")
    with session_of(simulated_host) as session:
        point = backup_machine(session, "vm1", repository, Listener()).point
        simulated_host.machine("vm1").power_off()
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH) as source, open_point(repository, point, 2000) as stored:
            assert compare(source, stored) is None
        with connection.open(PATH, read_only=False) as disk:
            changed = 5 * MIB + 512
            old = bytearray(512)
            disk.read_into(changed, old)
            disk.write_from(changed, bytes(byte ^ 1 for byte in old))
        with connection.open(PATH) as source, open_point(repository, point, 2000) as stored:
            assert compare(source, stored) == changed


def test_row_19_a_restore_that_differs_is_an_error(
    simulated_host: SimulatedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_host.power_on_all()
    guest = Guest(simulated_host)
    guest.write(3 * MIB, b"a" * 4096)
    repository = new_repository(tmp_path / "repo")
    real = restore_job.restore_disk

    def forgetful(repository: Any, point: Any, key: int, target: Any, **rest: Any) -> Any:
        done = real(repository, point, key, target, **rest)
        target.write_from(3 * MIB + 1024, bytes(512))
        return done

    with session_of(simulated_host) as session:
        point = backup_machine(session, "vm1", repository, Listener()).point
        monkeypatch.setattr(restore_job, "restore_disk", forgetful)
        with pytest.raises(VerifyFailed, match=str(3 * MIB + 1024)):
            restore_job.restore_machine(session, repository, point, "back", Listener(), verify=True)
        with pytest.raises(VixError, match="back"):
            find_machine(session, "back")


def test_row_20_damage_is_found_without_a_restore(
    vdkit: Vdkit, simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """virtnbdbackup#134: a corrupt block was noticed only when it was needed."""
    simulated_host.power_on_all()
    Guest(simulated_host).scribble()
    repository = tmp_path / "repo"
    assert vdkit("backup", "vm1", "--to", repository).code == 0
    assert vdkit("verify", repository).code == 0
    (stored,) = repository.rglob("*.vmdk")
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    vdkit("verify", repository).failed(4, stored.name, "offset")


# -- transport, network, limits --------------------------------------------------------------------


def test_row_21_an_error_names_the_port_and_the_host_not_a_number_alone(
    simulated_host_factory: HostFactory,
) -> None:
    """velero-plugin-for-vsphere#145: "14009" turned out to be port 902 that did not answer."""
    closed, silent = Scenario(ticket_port=1), Scenario(nfc=NfcFaults(greeting_silent=True))
    quick = Retry(attempts=1, sleep=lambda seconds: None)
    for scenario, words in ((closed, ("127.0.0.1:1", "refused", "TCP 1")), (silent, ("greeting", PATH))):
        host = simulated_host_factory(scenario=scenario)
        with session_of(host) as session:
            connection = connection_of(session, find_machine(session, "vm1"))
            connection._timeouts = nfc.Timeouts(connect=1, request=0.2, read=0.2, write=0.2, close=0.2)
            with pytest.raises(TransportError) as caught:
                connection.open(PATH, retry=quick)
        text = str(caught.value)
        assert "\n" not in text
        for word in words:
            assert word in text, text
        assert host.host in text


def test_row_22_a_host_that_takes_no_more_connections_is_an_error_or_a_wait(
    simulated_host_factory: HostFactory,
) -> None:
    """migratekit#14: munmap_chunk() in a native library, then "resource temporarily unavailable"."""
    host = simulated_host_factory(scenario=Scenario(nfc_connection_limit=1))
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH) as first:
            once = Retry(attempts=1, sleep=lambda seconds: None)
            with pytest.raises(TooManyConnections) as caught:
                connection.open(PATH, retry=once)
            assert f":{host.nfc_port}" in str(caught.value)
            assert caught.value.retryable
            first.read_into(0, bytearray(512))

            def first_ends(seconds: float) -> None:
                first.close()

            with connection.open(PATH, retry=Retry(sleep=first_ends)) as second:
                second.read_into(0, bytearray(512))


def test_row_23_requests_are_of_two_mebibytes_at_most(simulated_host_factory: HostFactory) -> None:
    """containerized-data-importer#3752: larger reads are not faster and keep the memory from others."""
    assert nfc.FAR_REQUEST_SIZE <= nfc.NEAR_REQUEST_SIZE <= 2 * MIB
    # Reads wait at the host, so that all that is under way at once is there to be counted. Larger ones are
    # refused, and with one attempt a refusal is an error.
    faults = NfcFaults(slow_reads=0.02, no_memory_over=2 * MIB)
    host = simulated_host_factory(scenario=Scenario(nfc=faults, nfc_memory_limit=64 * MIB))
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH, retry=Retry(attempts=1)) as disk:
            disk.read_into(0, bytearray(48 * MIB))
    assert 0 < host.nfc_memory_peak <= nfc.MAX_IN_FLIGHT
    assert host.nfc_memory_refused == 0


def test_row_27_the_disk_of_a_running_machine_is_read_under_a_snapshot(simulated_host: SimulatedHost) -> None:
    """project-pegaprox#553: HTTP, SSH and SSHFS cannot read the base disk of a machine that runs."""
    simulated_host.power_on_all()
    guest = Guest(simulated_host)
    guest.scribble()
    with session_of(simulated_host) as session:
        vm = find_machine(session, "vm1")
        with pytest.raises(VixError) as caught:
            connection_of(session, vm).open(PATH)
        assert "snapshot" in str(caught.value)
        with snapshots.temporary_snapshot(session, vm, "vdkit row 27", "vdkit:row27") as taken:
            frozen = guest.now()
            guest.scribble()
            with connect(params(simulated_host, snapshot=taken.moref)) as connection:
                assert connection.vm is not None
                with connection.open(connection.vm.disks[0].file) as disk:
                    assert content_of(disk) == frozen
    assert snapshots_left(simulated_host) == []


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_row_28_many_small_areas_are_asked_for_together(
    simulated_host_factory: HostFactory, mode: str
) -> None:
    """xen-orchestra#7323: 71 minutes became 5 when small reads no longer waited for each other (row E18)."""
    host = simulated_host_factory(
        scenario=Scenario(nfc=NfcFaults(slow_reads=0.05), nfc_memory_limit=64 * MIB)
    )
    small, count = 4096, 64
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH, transport_modes=mode) as disk:
            pieces = [(number * MIB // 2, memoryview(bytearray(small))) for number in range(count)]
            disk.read_many(pieces)
    # What the host held at once: many requests, not one after the other.
    assert host.nfc_memory_peak >= small * count // 4


def test_row_29_without_the_snapshot_the_error_names_those_there_are(simulated_host: SimulatedHost) -> None:
    """containerized-data-importer#3385: "no access rights" (13) until the snapshot was passed."""
    simulated_host.power_on_all()
    with session_of(simulated_host) as session:
        vm = find_machine(session, "vm1")
        with snapshots.temporary_snapshot(session, vm, "vdkit row 29", "vdkit:row29") as taken:
            with connect(params(simulated_host)) as connection:
                assert connection.vm is not None
                with pytest.raises(VixError) as caught:
                    connection.open(connection.vm.disks[0].file)
            assert "pass the snapshot" in str(caught.value)
            assert "(vdkit row 29)" in str(caught.value)
            assert taken.moref in str(caught.value)
            with connect(params(simulated_host, snapshot=taken.moref)) as connection:
                assert connection.vm is not None
                with connection.open(connection.vm.disks[0].file) as disk:
                    disk.read_into(0, bytearray(512))


def test_row_31_a_host_is_trusted_by_one_command(
    vdkit: Vdkit, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virt-v2v#110: finding the thumbprint is a chore, so people want to do without."""
    for key in ("VDKIT_THUMBPRINT", "VDKIT_CA_FILE", "GOVC_TLS_KNOWN_HOSTS", "GOVC_TLS_CA_CERTS"):
        monkeypatch.delenv(key, raising=False)
    where = f"{simulated_host.host}:{simulated_host.port}"
    vdkit("vms").failed(2, where, "fingerprint")
    ports = ("--data-port", simulated_host.nfc_port)
    done = vdkit("fingerprint", where, *ports, "--trust")
    assert done.code == 0, done.err
    assert simulated_host.thumbprint_sha256 in done.text
    assert "vm1" in vdkit("vms").text
