"""Which transport mode opens a disk: VixDiskLib's list joined with the modes that are built.

Each open may end in a mode of its own, so whoever opens asks what it became (GetTransportMode).

Source of the names and their order: the published VDDK programming guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar, get_args

from vdkit.errors import ModeUnavailable
from vdkit.transports.modes import (
    Choice,
    Considered,
    ModeName,
    Opened,
    Probe,
    Subject,
    choose,
    consider,
    default_modes,
    disk_obstacle,
    open_in_order,
    parse_modes,
)
from vdkit.transports.nfc import Mode
from vdkit.transports.surroundings import Machine, Surroundings, look_around
from vdkit.vsphere.model import Backing, ControllerKind, VirtualDisk, VirtualMachine

__all__ = [
    "PROBES",
    "REMOTE_MODES",
    "Choice",
    "Considered",
    "ModeName",
    "Opened",
    "Subject",
    "Surroundings",
    "choose_modes",
    "consider_modes",
    "default_modes",
    "disk_obstacle",
    "disk_subject",
    "list_transport_modes",
    "look_around",
    "open_in_modes",
    "parse_modes",
    "subject_of",
]

T = TypeVar("T")

#: Modes that are built and open a disk of a host, best first.
REMOTE_MODES: Final[tuple[Mode, ...]] = ("nbdssl", "nbd")
ANY_DISK: Final = Subject()
_LATER: Final = "not in this release of vdkit: it comes with the next"


def _san(subject: Subject, here: Surroundings) -> Considered:
    """What is known without reading a LUN: whether the disk can go over SAN, and which disks are seen."""
    reason = disk_obstacle("san", subject)
    if reason is None and not here.scsi_disks:
        reason = f"{_scsi_text(here)}, so no LUN of a datastore can be"
    return Considered("san", False, reason or f"{_LATER} ({_scsi_text(here)})")


def _hotadd(subject: Subject, here: Surroundings) -> Considered:
    """Only a virtual machine on VMware can have a disk of another attached."""
    reason = disk_obstacle("hotadd", subject)
    if reason is None and here.machine is not Machine.VMWARE:
        reason = f"this is {here.text}, and only a virtual machine on VMware can have disks attached"
    if reason is None and here.scsi_disks is None:
        reason = f"{_scsi_text(here)}, so an attached one would not be found"
    return Considered("hotadd", False, reason or _LATER)


def _scsi_text(here: Surroundings) -> str:
    match here.scsi_disks:
        case None:
            return "the kernel lists no SCSI disks here (/sys/class/scsi_disk)"
        case ():
            return "no SCSI disk is visible here"
        case disks:
            return (
                f"{len(disks)} SCSI disks are visible here"
                if len(disks) > 1
                else "one SCSI disk is visible here"
            )


#: What looks at the modes that depend on the machine we run on.
PROBES: Final[Mapping[ModeName, Probe]] = {"san": _san, "hotadd": _hotadd}


def list_transport_modes() -> str:
    """VixDiskLib's list: the modes that are built, best first."""
    return ":".join(("file", *REMOTE_MODES))


def subject_of(
    vm: VirtualMachine | None, path: str, *, disk: VirtualDisk | None = None, writable: bool = False
) -> Subject:
    """What the machine's configuration, if there is one, says of the disk of ``path``, or of ``disk``."""
    disks = () if vm is None else vm.disks
    known = disk or next((one for one in disks if path == one.file or path in one.parents), None)
    return (
        Subject(name=path, writable=writable)
        if known is None
        else disk_subject(known, path, writable=writable)
    )


def disk_subject(
    disk: VirtualDisk, path: str | None = None, *, datastore: str = "", writable: bool = False
) -> Subject:
    """The facts of a disk that decide about modes. ``datastore`` is the type of its datastore, if known."""
    return Subject(
        name=path or disk.file,
        encrypted=disk.encrypted,
        physical_mapping=disk.backing is Backing.RAW_MAPPING_PHYSICAL,
        ide=disk.controller is not None and disk.controller.kind is ControllerKind.IDE,
        capacity=disk.capacity,
        datastore=datastore.upper(),
        writable=writable,
    )


def consider_modes(
    modes: str | None, subject: Subject = ANY_DISK, *, here: Surroundings | None = None
) -> tuple[Considered, ...]:
    """Every mode of a list with a verdict, usable or not. None: the default's, and the others after them."""
    asked = None if modes is None else parse_modes(modes)
    return consider(asked, subject, here or look_around(), PROBES)


def choose_modes(
    modes: str | None, subject: Subject = ANY_DISK, *, here: Surroundings | None = None
) -> Choice:
    """The modes to try for a disk, of a colon list or, with None, of the default for where we run.

    ``here`` None: this machine is looked at. Raises UsageError for a list that is none, and ModeUnavailable,
    which gives the reason for each mode, when none can be used.
    """
    return choose(consider_modes(modes, subject, here=here), subject)


def open_in_modes(
    modes: str | None,
    subject: Subject,
    opener: Callable[[Mode], T],
    *,
    here: Surroundings | None = None,
) -> Opened[T]:
    """Open a disk of a host in the first mode that works; ``opener`` opens it in one of REMOTE_MODES.

    Raises as :func:`choose_modes`, and what ``opener`` raises for any reason but its mode.
    """
    choice = choose_modes(modes, subject, here=here)
    return open_in_order(choice, subject, partial(_open, subject, opener))


def _open(subject: Subject, opener: Callable[[Mode], T], mode: ModeName) -> T:
    for built in get_args(Mode):
        if mode == built:
            return opener(built)
    raise ModeUnavailable(f"{subject.name}: {mode} cannot open a disk of a host")
