"""The diagnosis of disks: each cause has its verdict, its words and its remedy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from vdkit.errors import ExitCode
from vdkit.jobs.doctor_disks import MAX_SNAPSHOTS, disk_report, machine_findings, modes
from vdkit.jobs.findings import DiskVerdict, Go, Report, Severity, problem, warning
from vdkit.vsphere.hardware import diagnose, disks
from vdkit.vsphere.known_faults import faults_of
from vdkit.vsphere.model import (
    Backing,
    Controller,
    ControllerKind,
    Power,
    Snapshot,
    VirtualDisk,
    VirtualMachine,
)
from vdkit.vsphere.placement import DatastoreFacts, Placement
from vsphere_fakes import disk_device, fake_machine

TIB = 1 << 40
VMFS = DatastoreFacts("ds-1", "ds", "VMFS", accessible=True)
HERE = Placement((), (VMFS,), None, None, usable=True, tools_running=True)


def a_disk(
    *,
    backing: Backing = Backing.FLAT,
    mode: str = "persistent",
    shared: bool = False,
    enabled: bool = True,
    supported: bool = True,
    change_id: str | None = "52 aa/1",
    **more: Any,
) -> VirtualDisk:
    state = diagnose(backing, mode, shared=shared, change_id=change_id, enabled=enabled, supported=supported)
    return VirtualDisk(
        key=2000,
        label="Hard disk 1",
        file="[ds] web/web.vmdk",
        capacity=more.pop("capacity", 1 << 30),
        backing=backing,
        mode=mode,
        shared=shared,
        change_id=change_id,
        tracking=state,
        **more,
    )


def a_machine(disk: VirtualDisk, **more: Any) -> VirtualMachine:
    fields = {"instance_uuid": "u", "hardware_version": 19, "disks": (disk,), **more}
    return fake_machine(**fields)


def chain(depth: int) -> tuple[Snapshot, ...]:
    below: tuple[Snapshot, ...] = ()
    for number in range(depth, 0, -1):
        below = (Snapshot(f"s{number}", f"s{number}", "", children=below),)
    return below


@pytest.mark.parametrize(
    ("disk", "machine", "verdict", "check", "severity", "code", "words"),
    [
        ({}, {}, DiskVerdict.TRACKED, None, None, 0, "changes are tracked"),
        (
            {"enabled": False, "change_id": None},
            {},
            DiskVerdict.WILL_START,
            "disk.off",
            Severity.WARNING,
            0,
            "vdkit tracking 7 --enable",
        ),
        (
            {"change_id": None},
            {},
            DiskVerdict.WILL_START,
            "disk.pending",
            Severity.WARNING,
            0,
            "power cycle",
        ),
        (
            {"change_id": None},
            {"snapshots": chain(1)},
            DiskVerdict.AFTER_REMEDY,
            "disk.untracked",
            Severity.PROBLEM,
            ExitCode.CHANGE_TRACKING,
            "delete the snapshots",
        ),
        (
            {"enabled": False, "change_id": None},
            {"template": True},
            DiskVerdict.AFTER_REMEDY,
            "disk.untracked",
            Severity.PROBLEM,
            ExitCode.CHANGE_TRACKING,
            "convert it to a machine",
        ),
        (
            {"mode": "independent_persistent"},
            {},
            DiskVerdict.AFTER_REMEDY,
            "disk.independent",
            Severity.PROBLEM,
            ExitCode.SOURCE_INCOMPLETE,
            "make it dependent",
        ),
        (
            {"mode": "independent_nonpersistent"},
            {},
            DiskVerdict.AFTER_REMEDY,
            "disk.independent",
            Severity.PROBLEM,
            ExitCode.SOURCE_INCOMPLETE,
            "independent nonpersistent",
        ),
        (
            {"backing": Backing.RAW_MAPPING_PHYSICAL},
            {},
            DiskVerdict.AFTER_REMEDY,
            "disk.rdm-physical",
            Severity.PROBLEM,
            ExitCode.SOURCE_INCOMPLETE,
            "virtual mode",
        ),
        (
            {"backing": Backing.RAW_MAPPING},
            {},
            DiskVerdict.TRACKED,
            "disk.rdm-virtual",
            Severity.NOTE,
            0,
            "ordinary one",
        ),
        (
            {"shared": True},
            {},
            DiskVerdict.AFTER_REMEDY,
            "disk.shared",
            Severity.PROBLEM,
            ExitCode.CONTROL,
            "no snapshot of the machine can be made",
        ),
        (
            {"supported": False},
            {"hardware_version": 6},
            DiskVerdict.AFTER_REMEDY,
            "disk.untracked",
            Severity.PROBLEM,
            ExitCode.CHANGE_TRACKING,
            "version to 7",
        ),
        (
            {"backing": Backing.OTHER},
            {},
            DiskVerdict.NEVER,
            "disk.untracked",
            Severity.PROBLEM,
            ExitCode.CHANGE_TRACKING,
            "no change tracking",
        ),
        (
            {"encrypted": True},
            {},
            DiskVerdict.TRACKED,
            "disk.encrypted",
            Severity.NOTE,
            0,
            "nbdssl",
        ),
        ({"capacity": 3 * TIB}, {}, DiskVerdict.TRACKED, "disk.size", Severity.NOTE, 0, "2 TiB"),
        (
            {"capacity": (1 << 20) + 100},
            {},
            DiskVerdict.TRACKED,
            "disk.size",
            Severity.PROBLEM,
            ExitCode.CONTROL,
            "whole sectors",
        ),
        (
            {"capacity": 63 * TIB},
            {},
            DiskVerdict.TRACKED,
            "disk.size",
            Severity.WARNING,
            0,
            "largest disk",
        ),
        (
            {"controller": Controller(200, ControllerKind.IDE)},
            {},
            DiskVerdict.TRACKED,
            "disk.controller",
            Severity.NOTE,
            0,
            "HotAdd cannot",
        ),
    ],
)
def test_each_cause(
    disk: dict[str, Any],
    machine: dict[str, Any],
    verdict: DiskVerdict,
    check: str | None,
    severity: Severity | None,
    code: int,
    words: str,
) -> None:
    found = a_disk(**disk)
    report = disk_report(a_machine(found, **machine), found, VMFS)
    assert report.verdict is verdict
    text = f"{report.cause} {report.remedy} " + " ".join(f"{f.text} {f.remedy}" for f in report.findings)
    assert words in text
    if check is None:
        assert report.findings == ()
    else:
        (finding,) = [one for one in report.findings if one.check == check]
        assert (finding.severity, finding.exit_code) == (severity, code)
        assert finding.subject == "disk 2000 (Hard disk 1)"
    assert report.in_backup is (check not in ("disk.independent", "disk.rdm-physical", "disk.shared"))


def test_e13_old_hardware_on_virtual_volumes_is_reported() -> None:
    store = DatastoreFacts("ds-1", "ds", "VVOL", accessible=True)
    found = a_disk(capacity=3 * TIB)
    report = disk_report(a_machine(found, hardware_version=9), found, store)
    warned = [one for one in report.findings if one.check == "disk.vvol"]
    assert [one.severity for one in warned] == [Severity.WARNING, Severity.NOTE]
    assert "virtual hardware 9" in warned[0].text
    young = disk_report(a_machine(a_disk(), hardware_version=13), a_disk(), store)
    assert not [one for one in young.findings if one.check == "disk.vvol"]


def test_a_datastore_that_is_gone_is_a_problem_and_one_unseen_is_none() -> None:
    found = a_disk()
    gone = replace(VMFS, accessible=False)
    report = disk_report(a_machine(found), found, gone)
    assert [one.check for one in report.findings] == ["disk.datastore"]
    assert disk_report(a_machine(found), found, None).findings == ()


@pytest.mark.parametrize(
    ("disk", "kind", "usable"),
    [
        ({}, "VMFS", "nbdssl nbd hotadd san"),
        ({}, "NFS", "nbdssl nbd hotadd"),
        ({}, "VSAN", "nbdssl nbd hotadd"),
        ({}, "VVOL", "nbdssl nbd hotadd"),
        ({"capacity": 3 * TIB}, "VVOL", "nbdssl nbd"),
        ({"encrypted": True}, "VMFS", "nbdssl hotadd"),
        ({"controller": Controller(200, ControllerKind.IDE)}, "VMFS", "nbdssl nbd san"),
        ({"controller": Controller(15000, ControllerKind.SATA)}, "VMFS", "nbdssl nbd hotadd san"),
        ({"controller": Controller(31000, ControllerKind.NVME)}, "VMFS", "nbdssl nbd hotadd san"),
        ({"backing": Backing.RAW_MAPPING}, "VMFS", "nbdssl nbd hotadd san"),
        ({"backing": Backing.RAW_MAPPING_PHYSICAL}, "VMFS", ""),
        ({"mode": "independent_persistent"}, "VMFS", ""),
    ],
)
def test_which_transport_modes_can_open_it(disk: dict[str, Any], kind: str, usable: str) -> None:
    found = list(modes(a_disk(**disk), kind))
    assert [one.mode for one in found] == ["nbdssl", "nbd", "hotadd", "san"]
    assert " ".join(one.mode for one in found if one.usable) == usable
    assert all(one.reason for one in found)


KINDS = st.fixed_dictionaries(
    {
        "backing": st.sampled_from(Backing),
        "mode": st.sampled_from(["persistent", "independent_persistent", "nonpersistent", "weird"]),
        "shared": st.booleans(),
        "enabled": st.booleans(),
        "supported": st.booleans(),
        "change_id": st.sampled_from([None, "52 aa/1"]),
        "encrypted": st.booleans(),
        "capacity": st.sampled_from([0, 1, 512, 1 << 30, 3 * TIB, 70 * TIB]),
        "controller": st.sampled_from([None, *(Controller(1, kind) for kind in ControllerKind)]),
    }
)


@given(KINDS, st.sampled_from(["VMFS", "NFS", "NFS41", "vsan", "VVOL", "", "new"]), st.integers(0, 33))
def test_every_disk_gets_a_report_that_agrees_with_itself(
    kind: dict[str, Any], store: str, snapshots: int
) -> None:
    disk = a_disk(**kind)
    vm = a_machine(disk, snapshots=chain(snapshots), change_tracking_supported=kind["supported"])
    report = disk_report(vm, disk, DatastoreFacts("d", "ds", store, accessible=True))
    assert report.cause
    if report.verdict is not DiskVerdict.TRACKED and report.verdict is not DiskVerdict.NEVER:
        assert report.remedy
    problems = [one for one in report.findings if one.severity is Severity.PROBLEM]
    assert all(one.exit_code for one in problems)
    assert not any(one.exit_code for one in report.findings if one not in problems)
    # What is not in a backup, or cannot be incremental, is never passed over in silence.
    if not report.in_backup or report.verdict is not DiskVerdict.TRACKED:
        assert report.findings
    whole = Report(vm.name, vm.moref, vm.path, (report,), tuple(machine_findings(vm, HERE)))
    assert (whole.go is Go.YES) == (whole.exit_code == 0)


@pytest.mark.parametrize(
    ("machine", "check", "severity", "words"),
    [
        ({"disks": ()}, "machine.disks", Severity.PROBLEM, "no disk"),
        ({"instance_uuid": None}, "machine.uuid", Severity.PROBLEM, "instance UUID"),
        (
            {"change_tracking_supported": False, "hardware_version": 4},
            "machine.hardware",
            Severity.PROBLEM,
            "virtual hardware 4",
        ),
        ({"template": True}, "machine.template", Severity.PROBLEM, "template"),
        ({"consolidation_needed": True}, "machine.consolidation", Severity.WARNING, "consolidation"),
        ({"power": Power.SUSPENDED}, "machine.power", Severity.NOTE, "suspended"),
        ({"snapshots": chain(3)}, "machine.snapshots", Severity.NOTE, "3 in a row"),
        ({"snapshots": chain(28)}, "machine.snapshots", Severity.WARNING, "too many"),
        ({"snapshots": chain(MAX_SNAPSHOTS)}, "machine.snapshots", Severity.PROBLEM, "no more than 32"),
    ],
)
def test_what_concerns_the_machine(
    machine: dict[str, Any], check: str, severity: Severity, words: str
) -> None:
    found = [one for one in machine_findings(a_machine(a_disk(), **machine), HERE) if one.check == check]
    assert [one.severity for one in found] == [severity]
    assert words in found[0].text


def test_tools_and_connection() -> None:
    vm = a_machine(a_disk())
    assert list(machine_findings(vm, HERE)) == []
    without = replace(HERE, tools_running=False, usable=False)
    assert [one.check for one in machine_findings(vm, without)] == ["machine.connection", "machine.tools"]
    # Nobody can say of a machine whose host is not seen.
    assert list(machine_findings(vm, None)) == []


def test_the_exit_code_is_that_of_the_gravest_problem() -> None:
    def report(*codes: int) -> Report:
        findings = tuple(problem("c", "s", "t", None, code) for code in codes)
        return Report("m", "1", "/m", (), (*findings, warning("w", "s", "t")))

    assert (report().exit_code, report().go) == (0, Go.YES)
    for code in (ExitCode.SOURCE_INCOMPLETE, ExitCode.CHANGE_TRACKING):
        assert (report(code).exit_code, report(code).go) == (code, Go.LIMITED)
    for worse, other in itertools.product(
        (ExitCode.TRANSPORT, ExitCode.TRUST, ExitCode.CONTROL), (ExitCode.SOURCE_INCOMPLETE, 13)
    ):
        assert (report(other, worse).exit_code, report(other, worse).go) == (worse, Go.NO)
    # A code that nobody thought of is no permission to go.
    assert (report(77).exit_code, report(77).go) == (ExitCode.FAILED, Go.NO)


def test_hosts_with_known_faults() -> None:
    assert "2090639" in faults_of("5.5.0", "1")[0]
    assert "2136854" in faults_of("6.0.0", "2494585")[0]
    assert faults_of("6.0.0", "3620759") == faults_of("8.0.3", "1") == faults_of("", "") == ()


@pytest.mark.parametrize(
    ("made", "kind", "shared"),
    [
        (vim.vm.device.ParaVirtualSCSIController, ControllerKind.PVSCSI, False),
        (vim.vm.device.VirtualLsiLogicSASController, ControllerKind.LSISAS, True),
        (vim.vm.device.VirtualLsiLogicController, ControllerKind.LSILOGIC, False),
        (vim.vm.device.VirtualBusLogicController, ControllerKind.BUSLOGIC, True),
        (vim.vm.device.VirtualAHCIController, ControllerKind.SATA, False),
        (vim.vm.device.VirtualNVMEController, ControllerKind.NVME, False),
        (vim.vm.device.VirtualIDEController, ControllerKind.IDE, False),
    ],
)
def test_controllers_are_told_apart(made: Any, kind: ControllerKind, shared: bool) -> None:
    controller = made(key=5, busNumber=2)
    if shared:
        controller.sharedBus = "physicalSharing"
    device = disk_device(2000)
    device.controllerKey, device.unitNumber = 5, 3
    (disk,) = disks([device, controller], enabled=True, supported=True)
    assert disk.controller == Controller(5, kind, 2, shared=shared)
    assert (disk.unit, disk.shared) == (3, shared)
    lonely = disk_device(2000)
    (without,) = disks([lonely], enabled=True, supported=True)
    assert without.controller is None
