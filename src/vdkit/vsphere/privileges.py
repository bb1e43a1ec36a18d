"""Which privileges the account needs, for what: the one table that the documents and the doctor share.

Sources: the published vSphere Web Services API reference and pyVmomi's tables (the privilege of each method),
the published virtual disk development kit guide (its role for a backup user). Which privilege a host checks
for the ticket calls and for first-class disks has not been confirmed on one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from vdkit.errors import ControlError, NotSupported
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session

#: Privileges of one account on one object that are believed.
MAX_PRIVILEGES: Final = 10_000


class Use(Enum):
    """What is to be done with the account."""

    LIST = "list"
    BACKUP = "backup"
    RESTORE = "restore"
    LOCK = "access lock"
    CLEANUP = "cleanup"
    DOCTOR = "doctor"
    FIRST_CLASS = "first-class disk"
    ENCRYPTED = "encrypted"


class On(Enum):
    """On which object of the inventory."""

    ROOT = "root folder, propagated"
    MACHINE = "machine"
    FOLDER = "folder of the machine"
    POOL = "resource pool"
    DATASTORE = "datastore"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Need:
    """One row of the table. An ``optional`` need only makes the result poorer when it is missing."""

    to: str
    ids: tuple[str, ...]
    on: On
    uses: frozenset[Use]
    optional: bool = False


def _need(to: str, ids: str, on: On, *uses: Use, optional: bool = False) -> Need:
    return Need(to, tuple(ids.split()), on, frozenset(uses), optional)


_CONFIG: Final = "VirtualMachine.Config."
TABLE: Final[tuple[Need, ...]] = (
    _need("log in, list machines and disks", "System.View System.Read System.Anonymous", On.ROOT, *Use),
    _need("switch change tracking on or off", f"{_CONFIG}ChangeTracking", On.MACHINE, Use.BACKUP),
    _need("make a snapshot", "VirtualMachine.State.CreateSnapshot", On.MACHINE, Use.BACKUP),
    _need(
        "remove it, consolidate the disks",
        "VirtualMachine.State.RemoveSnapshot",
        On.MACHINE,
        *(Use.BACKUP, Use.CLEANUP),
    ),
    _need(
        "ask what changed; read one disk with a ticket of its own",
        "VirtualMachine.Provisioning.DiskRandomRead",
        On.MACHINE,
        Use.BACKUP,
    ),
    _need(
        "read disks over `nbd` and `nbdssl`",
        "VirtualMachine.Provisioning.GetVmFiles",
        On.MACHINE,
        *(Use.BACKUP, Use.DOCTOR),
    ),
    _need("write disks", "VirtualMachine.Provisioning.DiskRandomAccess", On.MACHINE, Use.RESTORE),
    _need(
        "make a machine",
        f"VirtualMachine.Inventory.Create {_CONFIG}AddNewDisk",
        On.FOLDER,
        Use.RESTORE,
    ),
    _need("place it", "Resource.AssignVMToPool", On.POOL, Use.RESTORE),
    _need("make its files", "Datastore.AllocateSpace", On.DATASTORE, Use.RESTORE),
    _need(
        "change its processors, memory, settings",
        f"{_CONFIG}CPUCount {_CONFIG}Memory {_CONFIG}Settings",
        On.FOLDER,
        Use.RESTORE,
    ),
    _need(
        "start and stop it",
        "VirtualMachine.Interact.PowerOn VirtualMachine.Interact.PowerOff",
        On.FOLDER,
        Use.RESTORE,
    ),
    _need(
        "delete a half-made machine when a restore fails",
        "VirtualMachine.Inventory.Delete",
        On.FOLDER,
        Use.RESTORE,
    ),
    _need(
        "keep vCenter from moving the disks meanwhile (`prepare_for_access`)",
        "Global.DisableMethods Global.EnableMethods",
        On.ROOT,
        Use.LOCK,
    ),
    _need("let it move them again after a crash", "Global.EnableMethods", On.ROOT, Use.CLEANUP),
    _need(
        "find, snapshot and ask about first-class disks",
        "Datastore.Browse Datastore.FileManagement",
        On.DATASTORE,
        Use.FIRST_CLASS,
    ),
    _need("read encrypted machines", "Cryptographer.Access", On.MACHINE, Use.ENCRYPTED),
    _need("count the sessions of the host", "Sessions.TerminateSession", On.ROOT, Use.DOCTOR, optional=True),
)


@dataclass(frozen=True, slots=True)
class Target:
    """An object to look at: pyVmomi's type of it, its id, and what people call it."""

    kind: Any
    moref: str
    name: str


@dataclass(frozen=True, slots=True)
class Missing:
    """A privilege that the account lacks on an object, for a need."""

    privilege: str
    need: Need
    target: Target


def needs(uses: Collection[Use]) -> Iterator[Need]:
    """The rows of the table for any of ``uses``."""
    return (need for need in TABLE if not need.uses.isdisjoint(uses))


def account(session: Session) -> str:
    """The user of the session, as the host spells it."""
    what = "look at the own session"
    manager = session.content.sessionManager
    row = of_one(session, type(manager), manager._GetMoId(), ("currentSession",), what)
    found = row.get("currentSession")
    return (found.userName or "") if found is not None else ""


def missing(session: Session, targets: Mapping[On, Sequence[Target]], uses: Collection[Use]) -> list[Missing]:
    """What the account of the session lacks for ``uses``, on the objects given.

    A kind of object that ``targets`` does not have is not looked at. Raises NotSupported where the server
    does not tell the privileges of an account, NoPrivilege.
    """
    wanted = [need for need in needs(uses) if targets.get(need.on)]
    objects = {target.moref: target for need in wanted for target in targets[need.on]}
    granted = _granted(session, list(objects.values()))
    found: dict[tuple[str, str], Missing] = {}
    for need in wanted:
        for target in targets[need.on]:
            for privilege in need.ids:
                if privilege not in granted.get(target.moref, frozenset()):
                    found.setdefault((privilege, target.moref), Missing(privilege, need, target))
    return list(found.values())


def lacks_everywhere(session: Session, privilege: str, targets: Sequence[Target]) -> bool:
    """True if the account has the privilege on none of them; False where the server does not tell."""
    try:
        granted = _granted(session, targets)
    except (ControlError, NotSupported):
        return False
    return bool(granted) and not any(privilege in held for held in granted.values())


def _granted(session: Session, objects: Sequence[Target]) -> dict[str, frozenset[str]]:
    """The privileges of the account by the id of the object."""
    if not objects:
        return {}
    user = account(session)
    manager = session.content.authorizationManager
    refs = [session.managed(one.kind, one.moref) for one in objects]
    what = f"ask for the privileges of {user!r}"
    answer = session.read(what, lambda: manager.FetchUserPrivilegeOnEntities(refs, user))
    return {
        one.entity._GetMoId(): frozenset(list(one.privileges or ())[:MAX_PRIVILEGES]) for one in answer or ()
    }


def page_table() -> str:
    """The table as the reference page shows it."""
    lines = ["| to | privilege ids | on | for |", "| --- | --- | --- | --- |"]
    for need in TABLE:
        ids = ", ".join(f"`{one}`" for one in need.ids)
        uses = "everything" if need.uses == frozenset(Use) else ", ".join(_in_order(need.uses))
        optional = " (optional)" if need.optional else ""
        lines.append(f"| {need.to} | {ids} | {need.on.value} | {uses}{optional} |")
    return "\n".join(lines)


def _in_order(uses: Collection[Use]) -> list[str]:
    return [use.value for use in Use if use in uses]
