"""The doctor at the simulated host: what it finds on a healthy one, and each thing that is made wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulated_login import logged_in

from clitools import Vdkit
from vdkit.errors import (
    ConnectionRefused,
    ControlError,
    DeadlineExceeded,
    ExitCode,
    HostNotFound,
    TransportError,
)
from vdkit.jobs.doctor import DEFAULT_USES, examine
from vdkit.jobs.findings import DiskVerdict, Finding, Go, Report, Severity
from vdkit.net.fingerprints import Fingerprints, fingerprints
from vdkit.sim.controllers import Controller, DiskOptions
from vdkit.sim.host import SimulatedHost
from vdkit.sim.snapshot import DiskSpec, MachineConfig
from vdkit.sim.soap.authorization import PRIVILEGES
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import tracking
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.privileges import TABLE, Use, needs, page_table

MIB = 1 << 20
CANARY = "c4nary-d0ctor-p@ss"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "privileges.md"


@pytest.fixture(params=["esx", "vcenter"])
def host(request: pytest.FixtureRequest, simulated_host_factory: HostFactory) -> SimulatedHost:
    made = simulated_host_factory(personality=request.param, password=CANARY)
    made.power_on_all()
    return made


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, host: SimulatedHost, tmp_path: Path) -> Vdkit:
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, value in host.environment().items():
        monkeypatch.setenv(key, value)
    return Vdkit(monkeypatch)


def report_of(host: SimulatedHost, machine: str = "vm1", **options: Any) -> Report:
    with logged_in(host) as session:
        report = examine(session, machine, **options)
    assert host.internal_errors == []
    return report


def found(report: Report, check: str) -> list[Finding]:
    return [one for one in report.all(*Severity) if one.check == check]


def ports_answer(host: SimulatedHost) -> Callable[..., Fingerprints]:
    """Every host answers on every port with the certificate of the simulated one."""

    def probe(name: str, port: int, *, greeting: bool | None, timeout: float) -> Fingerprints:
        return fingerprints(host.host, host.nfc_port if greeting else host.port, greeting=greeting)

    return probe


def test_a_machine_in_order_is_a_go(host: SimulatedHost) -> None:
    with logged_in(host) as session:
        tracking.enable(session, find_machine(session, "vm1"), run="r")
    report = report_of(host, probe=ports_answer(host))
    assert (report.go, report.exit_code) == (Go.YES, 0)
    assert [disk.verdict for disk in report.disks] == [DiskVerdict.TRACKED]
    assert list(report.all(Severity.PROBLEM, Severity.WARNING)) == []
    checked = {one.check for one in report.all(Severity.GOOD)}
    assert checked == {
        "server.clock",
        "server.sessions",
        "account.privileges",
        "host.management-port",
        "host.data-port",
    }


def test_the_doctor_changes_nothing(host: SimulatedHost) -> None:
    machine = host.machine("vm1")
    before = (machine.config, machine.disk(2000).state(), host.inventory.version)
    report_of(host, uses=list(Use))
    assert (machine.config, machine.disk(2000).state(), host.inventory.version) == before
    assert host.world is not None
    assert host.world.sessions.all() == []


def test_off_and_pending_and_snapshots_are_told_apart(host: SimulatedHost) -> None:
    machine = host.machine("vm1")
    assert report_of(host).disks[0].verdict is DiskVerdict.WILL_START
    machine.set_change_tracking(True)
    report = report_of(host)
    assert report.disks[0].verdict is DiskVerdict.WILL_START
    assert found(report, "disk.pending")
    machine.set_change_tracking(False)
    machine.create_snapshot("somebody's")
    report = report_of(host)
    assert (report.disks[0].verdict, report.go) == (DiskVerdict.AFTER_REMEDY, Go.LIMITED)
    assert report.exit_code == ExitCode.CHANGE_TRACKING


def test_row_16_every_disk_has_its_verdict_before_anything_starts(host: SimulatedHost) -> None:
    config = MachineConfig.new("zoo")
    made = [
        DiskSpec(MIB),
        DiskSpec(MIB, controller=Controller("nvme")),
        DiskSpec(MIB, controller=Controller("ahci")),
        DiskSpec(MIB, controller=Controller("ide")),
        DiskSpec(MIB, options=DiskOptions(mode="independent_nonpersistent")),
        DiskSpec(MIB, options=DiskOptions(mapping="physicalMode")),
        DiskSpec(MIB, options=DiskOptions(mapping="virtualMode")),
        DiskSpec(MIB, options=DiskOptions(key_id="k")),
    ]
    host.inventory.create_machine("zoo", "datastore1", made, config=config)
    with logged_in(host) as session:
        vm = tracking.enable(session, find_machine(session, "zoo"), run="r")
        assert vm.change_tracking
    report = report_of(host, "zoo")
    assert (report.go, report.exit_code) == (Go.LIMITED, ExitCode.SOURCE_INCOMPLETE)
    by_key = {disk.key: disk for disk in report.disks}
    assert [key for key, disk in by_key.items() if not disk.in_backup] == [2001, 2002]
    assert {key for key, disk in by_key.items() if disk.verdict is DiskVerdict.TRACKED} == {
        *(2000, 2003, 2004, 3000, 16000, 32000)
    }
    usable = {key: [m.mode for m in disk.modes if m.usable] for key, disk in by_key.items()}
    assert usable[2004] == ["nbdssl", "hotadd"]
    assert usable[3000] == ["nbdssl", "nbd", "san"]
    for check in ("disk.independent", "disk.rdm-physical", "disk.rdm-virtual", "disk.encrypted"):
        assert len(found(report, check)) == 1


def test_shared_disks_are_a_no_go_as_a_snapshot_would_fail(host: SimulatedHost) -> None:
    shared = DiskSpec(MIB, controller=Controller("lsisas", 1, "physicalSharing"))
    writers = DiskSpec(MIB, options=DiskOptions(sharing="sharingMultiWriter"))
    host.inventory.create_machine("bus", "datastore1", [DiskSpec(MIB), shared])
    host.inventory.create_machine("writers", "datastore1", [DiskSpec(MIB), writers])
    for name in ("bus", "writers"):
        report = report_of(host, name)
        assert (report.go, report.exit_code) == (Go.NO, ExitCode.CONTROL)
        assert found(report, "disk.shared")


def test_old_hardware(host: SimulatedHost) -> None:
    from dataclasses import replace

    old = replace(MachineConfig.new("old"), hardware_version=4)
    host.inventory.create_machine("old", "datastore1", [DiskSpec(MIB)], config=old)
    report = report_of(host, "old")
    assert (report.go, report.exit_code) == (Go.LIMITED, ExitCode.CHANGE_TRACKING)
    assert "virtual hardware 4" in found(report, "machine.hardware")[0].text


def test_a_machine_that_needs_consolidation_is_warned_of(host: SimulatedHost) -> None:
    machine = host.machine("vm1")
    snapshot = machine.create_snapshot("s")
    host.scenario.consolidation_fails = True
    with pytest.raises(Exception, match="consolidate"):
        machine.remove_snapshot(snapshot)
    (finding,) = found(report_of(host), "machine.consolidation")
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize("need", [need for need in TABLE if need.on.name != "ROOT"], ids=lambda n: n.to)
def test_each_missing_privilege_is_named(shared_simulated_host: SimulatedHost, need: Any) -> None:
    host = shared_simulated_host
    privilege = need.ids[-1]
    host.scenario.missing_privileges = frozenset({privilege})
    try:
        with logged_in(host) as session:
            report = examine(session, "vm1", uses=[*DEFAULT_USES, *need.uses], probe=ports_answer(host))
    finally:
        host.scenario.missing_privileges = frozenset()
    findings = [one for one in found(report, "account.privileges") if privilege in one.text]
    assert findings
    assert privilege in (findings[0].remedy or "")
    blocking = not need.uses.isdisjoint({Use.BACKUP, Use.ENCRYPTED})
    assert findings[0].severity is (Severity.PROBLEM if blocking else Severity.WARNING)
    assert report.exit_code == (ExitCode.CONTROL if blocking else 0)


def test_c1_no_licence_privilege_is_asked_for(host: SimulatedHost) -> None:
    """Global > License was needed before 6.0; nothing of ours asks for it, and without it all works."""
    assert not [one for need in TABLE for one in need.ids if "Licen" in one]
    host.scenario.missing_privileges = frozenset({"Global.Licenses"})
    assert report_of(host, uses=list(Use)).go is Go.YES


def test_the_free_licence_is_a_no_go_before_the_snapshot_is_tried(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory()
    host.scenario.free_licence = True
    report = report_of(host, probe=ports_answer(host))
    assert (report.go, report.exit_code) == (Go.NO, ExitCode.CONTROL)
    (finding,) = found(report, "server.licence")
    assert "may only read" in finding.text
    # No ticket, so no word on the port: whether 902 answers here must not change what the verdict says.
    assert report_of(host).exit_code == ExitCode.CONTROL
    with logged_in(host) as session, pytest.raises(ControlError, match="licence"):
        tracking.enable(session, find_machine(session, "vm1"), run="r")


def test_without_the_right_to_see_sessions_it_says_so(host: SimulatedHost) -> None:
    host.scenario.missing_privileges = frozenset({"Sessions.TerminateSession"})
    report = report_of(host)
    assert report.go is Go.YES
    notes = [one.text for one in report.all(Severity.NOTE)]
    assert any("Sessions.TerminateSession" in text for text in notes)


def test_a_server_that_does_not_tell_privileges_is_a_note(host: SimulatedHost) -> None:
    host.scenario.call_errors = {"FetchUserPrivilegeOnEntities": "NotSupported"}
    report = report_of(host)
    assert report.go is Go.YES
    assert "cannot be told" in found(report, "account.privileges")[0].text


def test_the_table_is_what_the_page_and_the_simulated_host_say() -> None:
    assert page_table() in PAGE.read_text(encoding="utf-8")
    assert {one for need in TABLE for one in need.ids} <= set(PRIVILEGES)
    assert {use for need in needs([Use.BACKUP]) for use in need.uses} >= {Use.BACKUP}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostNotFound("esx: the host name does not resolve"), ExitCode.TRANSPORT),
        (ConnectionRefused("esx:902: refused", remedy="let TCP 902 through"), ExitCode.TRANSPORT),
        (DeadlineExceeded("esx:902: no connection within 5 seconds"), ExitCode.TRANSPORT),
    ],
)
def test_a_data_port_that_is_not_reached_is_a_no_go(
    host: SimulatedHost, error: TransportError, code: int
) -> None:
    open_ports = ports_answer(host)

    def probe(name: str, port: int, *, greeting: bool | None, timeout: float) -> Fingerprints:
        if greeting:
            raise error
        return open_ports(name, port, greeting=greeting, timeout=timeout)

    report = report_of(host, probe=probe)
    assert (report.go, report.exit_code) == (Go.NO, code)
    (finding,) = found(report, "host.data-port")
    assert error.message in finding.text
    assert finding.remedy == error.remedy


def test_a_closed_data_port_really(host: SimulatedHost) -> None:
    host.scenario.ticket_port = 1
    report = report_of(host)
    assert (report.go, report.exit_code) == (Go.NO, ExitCode.TRANSPORT)
    assert "refused" in found(report, "host.data-port")[0].text


def test_a_host_without_a_ticket_is_a_no_go(host: SimulatedHost) -> None:
    host.scenario.ticket_error = "vim.fault.HostConnectFault"
    report = report_of(host, probe=ports_answer(host))
    assert report.go is Go.NO
    assert found(report, "host.ticket")


def test_another_certificate_than_the_server_names(host: SimulatedHost) -> None:
    open_ports = ports_answer(host)

    def probe(name: str, port: int, *, greeting: bool | None, timeout: float) -> Fingerprints:
        seen = open_ports(name, port, greeting=greeting, timeout=timeout)
        return Fingerprints(seen.host, seen.port, "00:" * 19 + "00", seen.sha256, seen.der)

    report = report_of(host, probe=probe)
    assert (report.go, report.exit_code) == (Go.NO, ExitCode.TRUST)
    assert "00:00" in found(report, "host.certificate")[0].text


def test_clocks_and_the_dates_of_certificates(host: SimulatedHost) -> None:
    probe = ports_answer(host)
    for days, wrong in ((20_000, "ended on"), (-20_000, "begins on")):
        there = datetime.now(UTC) + timedelta(days=days)

        def now(there: datetime = there) -> datetime:
            return there

        report = report_of(host, probe=probe, now=now)
        assert report.go is Go.YES
        (clock,) = found(report, "server.clock")
        assert clock.severity is Severity.WARNING
        assert ("behind" if days > 0 else "ahead of") in clock.text
        assert all(wrong in one.text for one in found(report, "host.certificate"))
        assert found(report, "host.certificate")


def test_many_sessions_are_warned_of(host: SimulatedHost) -> None:
    from vdkit.sim.soap.objects import Client

    assert host.world is not None
    for _ in range(450):
        host.world.open_session(host.user, Client("127.0.0.1", "a program that never logs out", ""))
    (finding,) = found(report_of(host), "server.sessions")
    assert finding.severity is Severity.WARNING
    assert "451 sessions" in finding.text


@pytest.mark.parametrize("personality", ["vcenter"])
def test_every_host_that_may_run_it_is_tried(simulated_host_factory: HostFactory, personality: str) -> None:
    host = simulated_host_factory(personality=personality, hosts=3)
    asked: list[tuple[str, int]] = []
    names = [one.name for one in host.inventory.places.hosts]
    running = host.inventory.places.hosts[0].name

    def probe(name: str, port: int, *, greeting: bool | None, timeout: float) -> Fingerprints:
        asked.append((name, port))
        if name in names and name != running:
            raise ConnectionRefused(f"{name}:{port}: refused")
        return fingerprints(host.host, host.port, greeting=False)

    report = report_of(host, probe=probe)
    others = [name for name in names if name != running]
    # The one that runs it is asked where the ticket says.
    assert {name for name, _ in asked} >= set(others)
    warned = [one for one in found(report, "host.data-port") if one.severity is Severity.WARNING]
    assert len(warned) == 2
    assert "once the machine runs there" in warned[0].text


def test_maintenance_and_a_lost_host(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(personality="vcenter", hosts=2)
    name = host.inventory.places.hosts[0].name
    host.scenario.hosts_in_maintenance = frozenset({name})
    report = report_of(host, probe=ports_answer(host))
    assert found(report, "host.maintenance")[0].severity is Severity.WARNING
    host.scenario.hosts_in_maintenance = frozenset()
    host.scenario.hosts_disconnected = frozenset({name})
    report = report_of(host, probe=ports_answer(host))
    assert report.go is Go.NO
    assert found(report, "host.connection")


def test_the_command_prints_the_verdict_first(vdkit: Vdkit, host: SimulatedHost) -> None:
    done = vdkit("doctor", "vm1")
    lines = done.text.splitlines()
    assert done.code == 0
    assert re.match(r"vm1 \(\S+\): GO: ", lines[0])
    assert "vdkit tracking" in done.text
    assert "good" not in done.text
    assert "good: server" in vdkit("doctor", "vm1", "--verbose").text
    host.scenario.missing_privileges = frozenset({"VirtualMachine.State.CreateSnapshot"})
    failed = vdkit("doctor", "vm1")
    assert failed.code == ExitCode.CONTROL
    assert "NO GO" in failed.text.splitlines()[0]
    assert "VirtualMachine.State.CreateSnapshot" in failed.text
    for one in (done, failed):
        assert CANARY not in one.text + one.err


def test_the_command_as_json(vdkit: Vdkit, host: SimulatedHost) -> None:
    host.scenario.missing_privileges = frozenset({"Resource.AssignVMToPool"})
    done = vdkit("doctor", "vm1", "--for", "restore", "--json")
    said = done.json
    assert (done.code, said["go"], said["exit_code"]) == (0, "go", 0)
    assert said["disks"][0]["verdict"] == "will start"
    assert [mode["mode"] for mode in said["disks"][0]["modes"]] == ["nbdssl", "nbd", "hotadd", "san"]
    lacking = [one for one in said["findings"] if one["check"] == "account.privileges"]
    assert "Resource.AssignVMToPool" in lacking[0]["text"]
    assert CANARY not in json.dumps(said) + done.err
    vdkit("doctor", "nobody").failed(ExitCode.CONTROL, "nobody")


def test_tracking_is_shown_switched_on_and_off(vdkit: Vdkit, host: SimulatedHost) -> None:
    assert vdkit("tracking", "vm1", "--json").json["enabled"] is False
    done = vdkit("tracking", "vm1", "--enable")
    assert (done.code, "active" in done.text) == (0, True)
    assert host.machine("vm1").tracking_active
    assert list(host.machine("vm1").snapshots()) == []
    assert vdkit("tracking", "vm1", "--disable", "--json").json["enabled"] is False
    host.machine("vm1").create_snapshot("mine")
    vdkit("tracking", "vm1", "--enable").failed(ExitCode.CHANGE_TRACKING, "'mine'", "delete them")
    assert not host.machine("vm1").config.change_tracking


def test_the_backup_of_a_template_ends_as_the_doctor_says_and_changes_nothing(
    simulated_host_factory: HostFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = simulated_host_factory(personality="vcenter", password=CANARY)
    host.machine("vm1").set_template(True)
    with logged_in(host) as session:
        assert find_machine(session, "vm1").template
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, value in host.environment().items():
        monkeypatch.setenv(key, value)
    vdkit = Vdkit(monkeypatch)
    doctor = vdkit("doctor", "vm1")
    assert "a template" in doctor.text
    vdkit("backup", "vm1", "--to", tmp_path / "repo").failed(doctor.code, "is a template", "convert it")
    assert doctor.code == ExitCode.CONTROL
    assert not host.machine("vm1").config.change_tracking
