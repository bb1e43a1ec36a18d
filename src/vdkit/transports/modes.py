"""Transport modes: an ordered list of them, which of it can be used for a disk from here, and why not.

The list is VixDiskLib's: ``file:san:hotadd:nbdssl:nbd``. Each mode is looked at by a probe, which gets the
facts of the disk and of the machine that we run on, and answers with a reason either way. A mode that passes
may still fail when the disk is opened; :func:`open_in_order` then goes on to the next one, if it was the mode
that failed and not the disk.

Without a list the default for these surroundings is taken. ``nbd`` is in none of the defaults: with it the
bytes of the disk go in clear, so it is used where somebody names it, and never because encryption failed.

Source of the names, their order and what each can do: the published VDDK programming guide and the release
notes of VDDK (transport methods, "default transport mode priority").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Literal, TypeVar, get_args

from vdkit.errors import ModeUnavailable, UsageError
from vdkit.transports.surroundings import Machine, Surroundings

ModeName = Literal["file", "san", "hotadd", "nbdssl", "nbd"]
#: All modes, in VixDiskLib's order.
MODES: Final[tuple[ModeName, ...]] = get_args(ModeName)

#: Bytes of the largest disk on virtual volumes that HotAdd attaches.
VVOL_HOTADD_BYTES: Final = 2 << 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of the disk that is to be opened. The default is any disk of a host."""

    name: str = "a disk of a host"
    local: bool = False
    """In a file of this machine."""
    encrypted: bool = False
    physical_mapping: bool = False
    """A raw device mapping in physical mode: no snapshot holds it and no transport carries it."""
    ide: bool = False
    """It hangs on an IDE controller."""
    capacity: int = 0
    datastore: str = ""
    """The type of its datastore in upper case (``VMFS``, ``NFS``, ``VSAN``, ``VVOL``), empty if not known."""
    writable: bool = False
    """It is to be written to, which some modes can do with fewer disks than read."""


@dataclass(frozen=True, slots=True)
class Considered:
    """A mode that was looked at, and what was found."""

    mode: ModeName
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The modes that were looked at, in the order in which they are tried. At least one of them is usable."""

    considered: tuple[Considered, ...]

    @property
    def usable(self) -> tuple[ModeName, ...]:
        return tuple(one.mode for one in self.considered if one.usable)

    @property
    def mode(self) -> ModeName:
        """The first that is usable: after :func:`open_in_order`, the one in use."""
        return self.usable[0]

    @property
    def rejected(self) -> tuple[Considered, ...]:
        """Those before the one in use: better ones that could not be had."""
        modes = [one.mode for one in self.considered]
        return self.considered[: modes.index(self.mode)]


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """What was opened, and the choice as it turned out."""

    device: T
    choice: Choice
    notes: tuple[str, ...] = ()
    """Modes that failed on the way, and the one that is used instead."""

    @property
    def mode(self) -> ModeName:
        return self.choice.mode


#: Looks at one mode for a disk and the machine that we run on.
Probe = Callable[[Subject, Surroundings], Considered]


def parse_modes(text: str) -> tuple[ModeName, ...]:
    """A colon list as modes, in its order, each once. Raises UsageError for what is not one."""
    found: list[ModeName] = []
    for part in text.split(":"):
        word = part.strip().casefold()
        mode = next((mode for mode in MODES if mode == word), None)
        if mode is None:
            what = f"transport mode {part!r}" if word else f"transport modes {text!r}: one is empty"
            raise UsageError(what, remedy=f"known are {', '.join(MODES)}; colons separate them")
        if mode not in found:
            found.append(mode)
    return tuple(found)


def default_modes(here: Surroundings) -> tuple[ModeName, ...]:
    """The order for a machine of this kind, without what cannot work there and without ``nbd``."""
    if here.container is not None:
        # A container sees disks only where it was given them: whoever did that names the mode.
        return ("file", "nbdssl")
    match here.machine:
        case Machine.PHYSICAL:
            return ("file", "san", "nbdssl")
        case Machine.VMWARE:
            return ("file", "san", "hotadd", "nbdssl")
        case Machine.OTHER_HYPERVISOR | Machine.UNKNOWN:
            return ("file", "nbdssl")


def consider(
    modes: Sequence[ModeName] | None, subject: Subject, here: Surroundings, probes: Mapping[ModeName, Probe]
) -> tuple[Considered, ...]:
    """Every mode of a list with the verdict of its probe; with None the default's, and then all others."""
    if modes is not None:
        return tuple(_probed(mode, subject, here, probes) for mode in modes)
    wanted = default_modes(here)
    found = [_probed(mode, subject, here, probes) for mode in wanted]
    for mode in MODES:
        if mode not in wanted:
            probed = _probed(mode, subject, here, probes)
            found.append(replace(probed, usable=False, reason=_not_by_default(probed, here)))
    return tuple(found)


def _probed(
    mode: ModeName, subject: Subject, here: Surroundings, probes: Mapping[ModeName, Probe]
) -> Considered:
    return _PROBES[mode](subject, here) if mode in _PROBES else probes[mode](subject, here)


def _not_by_default(probed: Considered, here: Surroundings) -> str:
    if not probed.usable:
        return probed.reason
    if probed.mode == "nbd":
        return "the disk's bytes would go in clear: only used when it is named"
    return f"not tried on {here.text} unless it is named"


def choose(considered: Sequence[Considered], subject: Subject) -> Choice:
    """The choice among what was looked at. Raises ModeUnavailable with every reason if none is usable."""
    if not any(one.usable for one in considered):
        raise _none(considered, subject)
    return Choice(tuple(considered))


def open_in_order(choice: Choice, subject: Subject, opener: Callable[[ModeName], T]) -> Opened[T]:
    """Open with the first mode that works.

    Only :class:`ModeUnavailable` goes on to the next one; whatever else ``opener`` raises is the disk's or
    the host's failure, which another mode would not cure. A host that refuses ``nbd`` gets ``nbdssl``,
    listed or not: it asks for more protection, not for less.
    """
    considered = list(choice.considered)
    failed: list[str] = []
    for mode in choice.usable:
        try:
            device = opener(mode)
        except ModeUnavailable as error:
            at = next(number for number, one in enumerate(considered) if one.mode == mode)
            considered[at] = Considered(mode, False, str(error))
            failed.append(f"transport mode {mode} cannot be used: {error}")
        else:
            return _opened(device, considered, failed)
    modes = [one.mode for one in considered]
    if "nbd" in modes and "nbdssl" not in modes and "nbd" in choice.usable:
        try:
            device = opener("nbdssl")
        except ModeUnavailable as error:
            considered.append(Considered("nbdssl", False, str(error)))
        else:
            considered.append(Considered("nbdssl", True, "the host does not offer disks in clear"))
            return _opened(device, considered, failed)
    raise _none(considered, subject)


def _opened(device: T, considered: Sequence[Considered], failed: Sequence[str]) -> Opened[T]:
    choice = Choice(tuple(considered))
    notes = (*failed, f"{choice.mode} is used instead") if failed else ()
    return Opened(device, choice, notes)


def _none(considered: Sequence[Considered], subject: Subject) -> ModeUnavailable:
    reasons = "; ".join(f"{one.mode}: {one.reason}" for one in considered)
    asked = ":".join(one.mode for one in considered)
    if subject.physical_mapping:
        remedy = "back it up from inside the guest, or with the means of the storage"
    elif "nbdssl" not in asked:
        remedy = "add nbdssl to the list: it works from anywhere"
    else:
        remedy = "vdkit modes --explain tells what can be used from here"
    return ModeUnavailable(
        f"{subject.name}: no transport mode of {asked} can be used ({reasons})", remedy=remedy
    )


# -- probes --------------------------------------------------------------------------------------


def disk_obstacle(mode: ModeName, subject: Subject) -> str | None:
    """Why a mode cannot carry this disk, wherever we run; None if it can. Every probe asks it first."""
    if subject.local:
        return None if mode == "file" else "the disk is in a local file"
    if mode == "file":
        return "the disk is on a host, not in a local file"
    if subject.physical_mapping:
        return "a raw device mapping in physical mode: no snapshot holds it and no transport carries it"
    match mode:
        case "nbd" if subject.encrypted:
            return "the disk is encrypted: hosts give it out over nbdssl only"
        case "hotadd" if subject.ide:
            return "an IDE disk cannot be attached to another machine"
        case "hotadd" if subject.datastore == "VVOL" and subject.capacity > VVOL_HOTADD_BYTES:
            return "a disk of more than 2 TiB on virtual volumes cannot be attached"
        case "san" if subject.encrypted:
            return "the disk is encrypted: the LUN holds nothing that could be read"
        case "san" if subject.datastore not in ("", "VMFS"):
            return f"a {subject.datastore} datastore is not a LUN with VMFS"
        case "nbdssl" | "nbd" | "hotadd" | "san":
            return None
        case _:
            raise AssertionError(f"unreachable: mode {mode}")


def _simple(mode: ModeName, reason: str) -> Probe:
    def probe(subject: Subject, _here: Surroundings) -> Considered:
        obstacle = disk_obstacle(mode, subject)
        return Considered(mode, obstacle is None, obstacle or reason)

    return probe


#: Modes that need nothing of the machine that we run on.
_PROBES: Final[dict[ModeName, Probe]] = {
    "file": _simple("file", "disks in local files are opened directly"),
    "nbdssl": _simple("nbdssl", "works from anywhere that reaches TCP 443 and 902 of the hosts, encrypted"),
    "nbd": _simple("nbd", "works from anywhere that reaches TCP 443 and 902 of the hosts, in clear"),
}
