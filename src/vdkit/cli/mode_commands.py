"""The command modes: which transport modes can be used from here, and why the others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.options import HostFlags, JsonOption, ModeOption, host_options
from vdkit.cli.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from vdkit.disklib.modes import Considered, Subject, Surroundings


def add_to(app: typer.Typer) -> None:
    app.command("modes")(modes)


@host_options
def modes(
    flags: HostFlags,
    machine: Annotated[
        str | None,
        typer.Argument(metavar="VM", help="Ask for the disks of this machine; without it no host is asked."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Every mode, with the reason why it can or cannot be used.")
    ] = False,
    mode: ModeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which transport modes would be tried, from this machine and in which order.

    A mode that passes here may still fail when a disk is opened; then the next one is tried.

    Example: vdkit modes --explain
    """
    from vdkit.disklib.modes import consider_modes, look_around

    here = look_around()
    wanted = flags.transports(mode)
    looked_at = [
        (subject, consider_modes(wanted, subject, here=here)) for subject in _subjects(flags, machine)
    ]
    if as_json:
        print_json({"here": _here(here), "disks": [_disk(*one) for one in looked_at]})
        return
    if explain:
        print_text(f"this is {here.text}")
        for fact in here.evidence:
            print_text(f"  {fact}")
    for subject, considered in looked_at:
        order = ":".join(one.mode for one in considered if one.usable) or "none"
        print_text(f"{subject.name}: {order}")
        if explain:
            rows = [[one.mode, "yes" if one.usable else "no", one.reason] for one in considered]
            print_table(["mode", "usable", "reason"], rows)


def _subjects(flags: HostFlags, machine: str | None) -> list[Subject]:
    """The disks to ask for: those of a machine, or any disk of a host and any local one."""
    from vdkit.disklib.modes import Subject, subject_of

    if machine is None:
        return [Subject(), Subject("a disk in a local file", local=True)]
    from vdkit.vsphere.inventory import find_machine

    with flags.login() as session:
        vm = find_machine(session, machine)
    return [subject_of(vm, disk.file, disk=disk) for disk in vm.disks]


def _here(here: Surroundings) -> dict[str, Any]:
    return {
        "machine": here.machine.value,
        "hypervisor": here.hypervisor,
        "container": here.container,
        "scsi_disks": None if here.scsi_disks is None else list(here.scsi_disks),
        "evidence": list(here.evidence),
        "text": here.text,
    }


def _disk(subject: Subject, considered: tuple[Considered, ...]) -> dict[str, Any]:
    return {
        "disk": subject.name,
        "order": [one.mode for one in considered if one.usable],
        "considered": [{"mode": one.mode, "usable": one.usable, "reason": one.reason} for one in considered],
    }
