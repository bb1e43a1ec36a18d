"""Commands that look before a backup, and switch change tracking: doctor, tracking."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.options import HostFlags, JsonOption, host_options
from vdkit.cli.output import print_json, print_note, print_table, print_text

if TYPE_CHECKING:
    from vdkit.jobs.findings import DiskReport, Finding, Report
    from vdkit.vsphere.model import VirtualMachine

MachineArgument = Annotated[
    str, typer.Argument(metavar="VM", help="Name, inventory path, moref=... or UUID of the machine.")
]


class Purpose(StrEnum):
    """What the account is looked at for; the names of :class:`vdkit.vsphere.privileges.Use`."""

    BACKUP = "backup"
    RESTORE = "restore"
    LOCK = "access-lock"
    CLEANUP = "cleanup"
    FIRST_CLASS = "first-class-disk"
    ENCRYPTED = "encrypted"


def add_to(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
    app.command("tracking")(tracking)


@host_options
def doctor(
    flags: HostFlags,
    machine: MachineArgument,
    purpose: Annotated[
        list[Purpose] | None,
        typer.Option("--for", help="What else the account must be able to do (repeatable)."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that a port may take to answer.", min=0.1, max=600)
    ] = 5.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what is in order.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether a machine can be backed up, disk by disk: the verdict, the cause and the remedy.

    Looks at the disks, the machine, the account's privileges, the server, and the ports of every host that
    may run the machine, as they answer from here. Changes nothing. Ends with 0 if a backup works and can be
    incremental, 3 if some disks are left out, 13 if some are read in full every time, and with the code that
    the backup would end with if it does not work (7 a port, 8 a certificate, 9 the server or a privilege).

    Example: vdkit doctor web01
    """
    from vdkit.jobs.doctor import DEFAULT_USES, examine
    from vdkit.vsphere.privileges import Use

    uses = [Use[one.name] for one in purpose or ()]
    with flags.login() as session:
        report = examine(session, machine, uses=[*DEFAULT_USES, *uses], timeout=timeout)
    if as_json:
        print_json(_document(report))
    else:
        _print_report(report, verbose=verbose)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@host_options
def tracking(
    flags: HostFlags,
    machine: MachineArgument,
    enable: Annotated[
        bool | None,
        typer.Option(
            "--enable/--disable",
            help="Switch it on (with a snapshot that is removed at once) or off.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether changes of a machine's disks are tracked, switch that on or off.

    Tracking begins with a stun of the running machine, so --enable makes a snapshot and removes it. It is
    refused while the machine has snapshots. After --disable every change id saved so far is worthless.

    Example: vdkit tracking web01 --enable
    """
    from vdkit.vsphere import tracking as changes
    from vdkit.vsphere.inventory import find_machine

    with flags.login() as session:
        vm = find_machine(session, machine)
        if enable is True:
            vm = changes.enable(session, vm, run="tracking")
        elif enable is False:
            vm = changes.disable(session, vm)
    _show_tracking(vm, as_json=as_json)


def _show_tracking(vm: VirtualMachine, *, as_json: bool) -> None:
    if as_json:
        disks = [
            {
                "key": disk.key,
                "label": disk.label,
                "file": disk.file,
                "tracking": disk.tracking.tracking.value,
                "reason": disk.tracking.reason,
                "remedy": disk.tracking.remedy,
                "change_id": disk.change_id,
            }
            for disk in vm.disks
        ]
        print_json({"machine": vm.name, "moref": vm.moref, "enabled": vm.change_tracking, "disks": disks})
        return
    print_note(f"{vm.name} ({vm.moref}): change tracking is {'on' if vm.change_tracking else 'off'}")
    print_table(
        ["disk", "label", "tracking", "reason"],
        [[str(d.key), d.label, d.tracking.tracking.value, d.tracking.reason] for d in vm.disks],
    )


# -- the report --------------------------------------------------------------------------------------


def _document(report: Report) -> dict[str, Any]:
    return {
        "machine": report.machine,
        "moref": report.moref,
        "path": report.path,
        "go": report.go.value,
        "exit_code": report.exit_code,
        "disks": [_disk_document(disk) for disk in report.disks],
        "findings": [_finding_document(finding) for finding in report.findings],
    }


def _disk_document(disk: DiskReport) -> dict[str, Any]:
    return {
        "key": disk.key,
        "label": disk.label,
        "file": disk.file,
        "verdict": disk.verdict.value,
        "cause": disk.cause,
        "remedy": disk.remedy,
        "in_backup": disk.in_backup,
        "modes": [{"mode": one.mode, "usable": one.usable, "reason": one.reason} for one in disk.modes],
        "findings": [_finding_document(finding) for finding in disk.findings],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "severity": finding.severity.value,
        "subject": finding.subject,
        "text": finding.text,
        "remedy": finding.remedy,
        "exit_code": finding.exit_code,
    }


def _print_report(report: Report, *, verbose: bool) -> None:
    """The verdict, what to do, the disks, and the rest."""
    from vdkit.jobs.findings import Severity

    print_text(f"{report.machine} ({report.moref}): {report.go.value.upper()}: {_meaning(report)}")
    wrong = list(report.all(Severity.PROBLEM)) + list(report.all(Severity.WARNING))
    if wrong:
        print_text("\nwhat to do")
    for number, finding in enumerate(wrong, 1):
        print_text(f"{number:3}. {finding.severity.value}: {finding.subject}: {finding.text}")
        if finding.remedy:
            print_text(f"     -> {finding.remedy}")
    print_text("\ndisks")
    rows = [
        [
            str(disk.key),
            disk.label,
            disk.verdict.value if disk.in_backup else "not in a backup",
            " ".join(one.mode for one in disk.modes if one.usable) or "none",
            disk.cause,
        ]
        for disk in report.disks
    ]
    print_table(["disk", "label", "incremental", "modes", "cause"], rows)
    rest = list(report.all(Severity.NOTE, *((Severity.GOOD,) if verbose else ())))
    if rest:
        print_text("\nalso")
    for finding in rest:
        tail = f" -> {finding.remedy}" if finding.remedy else ""
        print_text(f"  {finding.severity.value}: {finding.subject}: {finding.text}{tail}")


def _meaning(report: Report) -> str:
    from vdkit.jobs.findings import DiskVerdict, Go

    match report.go:
        case Go.NO:
            return f"a backup would fail (exit code {report.exit_code})"
        case Go.LIMITED:
            left_out = sum(1 for disk in report.disks if not disk.in_backup)
            if left_out:
                return f"{left_out} of {len(report.disks)} disks would be left out"
            return "a backup works, but reads some disks in full every time"
        case Go.YES:
            if all(disk.verdict is DiskVerdict.TRACKED for disk in report.disks):
                return "a backup works, and reads what changed"
            return "a backup works; the next one reads all, later ones what changed"
    raise AssertionError(f"unreachable: {report.go}")
