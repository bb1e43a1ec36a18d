"""Transport modes against hosts that offer only some of them: what is used, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, point_content, session_of, snapshots_left

from clitools import Vdkit
from vdkit.disklib.connection import connection_of
from vdkit.disklib.modes import choose_modes, subject_of
from vdkit.errors import ModeUnavailable, UsageError
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.restore import restore_machine
from vdkit.sim.controllers import DiskOptions
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere.inventory import find_machine

MIB = 1 << 20
PATH = "[datastore1] vm1/vm1.vmdk"
TLS_ONLY = Scenario(nfc=NfcFaults(unknown_services=("nfc", "vpxa-nfc")))
CLEAR_ONLY = Scenario(nfc=NfcFaults(greeting_without_nfcssl=True))


def open_over(host: SimulatedHost, modes: str | None) -> tuple[str, tuple[str, ...]]:
    """The mode that a disk is opened and read in, and what was told about it."""
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        with connection.open(PATH, transport_modes=modes) as disk:
            disk.read_into(0, bytearray(512))
            return disk.transport_mode, disk.notes


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_nbd_becomes_nbdssl_on_a_host_that_offers_only_tls(
    simulated_host_factory: HostFactory, personality: str
) -> None:
    host = simulated_host_factory(scenario=TLS_ONLY, personality=personality)
    for modes in ("nbd", "nbd:nbdssl", "san:nbd"):
        mode, notes = open_over(host, modes)
        assert mode == "nbdssl"
        assert "offers disks in TLS only" in notes[0]
        assert notes[-1] == "nbdssl is used instead"
    assert open_over(host, "nbdssl") == ("nbdssl", ())


def test_a_host_without_tls_is_read_in_clear_only_when_that_was_said(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory(scenario=CLEAR_ONLY)
    for modes in (None, "nbdssl", "san:hotadd:nbdssl"):
        with pytest.raises(ModeUnavailable, match="does not offer disks in TLS") as caught:
            open_over(host, modes)
        assert f":{host.nfc_port}" in str(caught.value)
    mode, notes = open_over(host, "nbdssl:nbd")
    assert mode == "nbd"
    assert "does not offer disks in TLS" in notes[0]
    assert open_over(host, "nbd") == ("nbd", ())


def test_a_refused_ticket_is_not_taken_for_a_refused_mode(simulated_host_factory: HostFactory) -> None:
    """Nothing is opened in another way because a ticket was bad."""
    from vdkit.disklib.remote import Retry
    from vdkit.errors import TicketRefused

    host = simulated_host_factory(scenario=Scenario(nfc=NfcFaults(proxy_refused=True)))
    with session_of(host) as session:
        connection = connection_of(session, find_machine(session, "vm1"))
        retry = Retry(attempts=2, sleep=lambda seconds: None)
        with pytest.raises(TicketRefused):
            connection.open(PATH, transport_modes="nbd:nbdssl", retry=retry)


def test_a_backup_tells_the_mode_that_it_ended_in(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory(scenario=TLS_ONLY)
    host.power_on_all()
    guest = Guest(host)
    guest.scribble()
    repository, listener = new_repository(tmp_path / "repo"), Listener()
    with session_of(host) as session:
        result = backup_machine(session, "vm1", repository, listener, modes="san:nbd")
        assert result.modes == {2000: "nbdssl"}
        assert point_content(repository, result.point) == guest.now()
        assert any("TLS only" in note for note in listener.notes)
        assert any("read over nbdssl" in note for note in listener.notes)
        restored = restore_machine(
            session, repository, result.point, "back", listener, modes="nbd", verify=True
        )
        assert restored.modes == {2000: "nbdssl"}


def test_what_a_disk_rules_out_follows_from_the_machines_configuration(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory(machines=0)
    disks = [
        DiskSpec(MIB),
        DiskSpec(MIB, options=DiskOptions(key_id="key-1")),
        DiskSpec(MIB, options=DiskOptions(mapping="physicalMode")),
        DiskSpec(MIB, options=DiskOptions(mapping="virtualMode")),
    ]
    host.inventory.create_machine("vm1", "datastore1", disks)
    with session_of(host) as session:
        vm = find_machine(session, "vm1")
        plain, encrypted, physical, mapped = sorted(vm.disks, key=lambda disk: disk.key)
        everything = "file:san:hotadd:nbdssl:nbd"
        for disk in (plain, mapped):
            assert choose_modes(everything, subject_of(vm, disk.file)).usable == ("nbdssl", "nbd")
        assert choose_modes(everything, subject_of(vm, encrypted.file)).usable == ("nbdssl",)
        connection = connection_of(session, vm)
        with pytest.raises(ModeUnavailable, match="nbd: the disk is encrypted"):
            connection.open(encrypted.file, transport_modes="nbd")
        with connection.open(encrypted.file, transport_modes="nbd:nbdssl") as disk:
            assert disk.transport_mode == "nbdssl"
        with pytest.raises(ModeUnavailable, match="raw device mapping"):
            connection.open(physical.file)


def test_a_list_that_cannot_work_is_told_before_anything_is_done(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory()
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        with pytest.raises(ModeUnavailable, match=r"san: .*hotadd: "):
            backup_machine(session, "vm1", repository, Listener(), modes="san:hotadd")
        with pytest.raises(UsageError, match="nfs"):
            backup_machine(session, "vm1", repository, Listener(), modes="nfs")
    assert (repository.points(), snapshots_left(host)) == ([], [])


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vdkit:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Vdkit(monkeypatch)


def settle(monkeypatch: pytest.MonkeyPatch, host: SimulatedHost) -> None:
    for key, value in host.environment().items():
        monkeypatch.setenv(key, value)


def test_vdkit_modes_explains_without_a_host(vdkit: Vdkit) -> None:
    found = vdkit("modes", "--json").json
    remote, local = found["disks"]
    assert (remote["order"], local["order"]) == (["nbdssl"], ["file"])
    assert {one["mode"] for one in remote["considered"]} == {"file", "san", "hotadd", "nbdssl", "nbd"}
    assert all(one["reason"] for disk in found["disks"] for one in disk["considered"])
    text = vdkit("modes", "--explain").text
    assert f"this is {found['here']['text']}" in text
    for one in remote["considered"]:
        assert one["reason"] in text
    assert "reason" not in vdkit("modes").text
    vdkit("modes", "--mode", "nbd:nfs").failed(2, "nfs", "nbdssl")


def test_vdkit_modes_of_a_machine(
    vdkit: Vdkit, simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, simulated_host)
    (disk,) = vdkit("modes", "vm1", "--json").json["disks"]
    assert (disk["disk"], disk["order"]) == (PATH, ["nbdssl"])
    monkeypatch.setenv("VDKIT_TRANSPORTS", "nbd:nbdssl")
    assert f"{PATH}: nbd:nbdssl" in vdkit("modes", "vm1").text
    assert f"{PATH}: nbdssl" in vdkit("modes", "vm1", "--transports", "nbdssl").text
    vdkit("modes", "vm7").failed(9, "vm7")


def test_the_list_of_modes_is_a_setting_like_others(
    vdkit: Vdkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VDKIT_TRANSPORTS", raising=False)
    settings = tmp_path / "settings.toml"
    settings.write_text('transports = "nbd"\n')
    assert "a disk of a host: nbd\n" in vdkit("modes", "--config", settings).text
    monkeypatch.setenv("VDKIT_TRANSPORTS", "nbdssl:nbd")
    assert "a disk of a host: nbdssl:nbd\n" in vdkit("modes", "--config", settings).text
    assert "a disk of a host: nbdssl\n" in vdkit("modes", "--mode", "nbdssl", "--config", settings).text


def test_vdkit_backup_and_restore_tell_the_mode(
    vdkit: Vdkit, simulated_host_factory: HostFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = simulated_host_factory(scenario=TLS_ONLY)
    settle(monkeypatch, host)
    monkeypatch.setenv("VDKIT_TRANSPORTS", "nbd")
    repository = tmp_path / "repo"
    done = vdkit("backup", "vm1", "--to", repository)
    assert done.code == 0, done.err
    assert "read over nbdssl" in done.text
    assert "TLS only" in done.err
    done = vdkit("backup", "vm1", "--to", repository, "--mode", "nbdssl", "--json")
    assert done.last["transport_modes"] == {"2000": "nbdssl"}
    done = vdkit("restore", repository, "latest", "--to", "back", "--json")
    assert done.last["transport_modes"] == {"2000": "nbdssl"}
    assert json.loads(done.out.splitlines()[0])["message_type"] == "step"
    vdkit("backup", "vm1", "--to", repository, "--mode", "hotadd").failed(7, "hotadd: ", "nbdssl")
