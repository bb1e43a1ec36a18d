"""PrepareForAccess, EndAccess and Cleanup in the shape of VixDiskLib.

The order around them is the programming guide's: prepare, make the snapshot, connect and read, remove the
snapshot, end. Each logs in with the parameters that a connection takes, and out again.

Source of the shape: the published VDDK programming guide (PrepareForAccess, EndAccess, Cleanup).
"""

from __future__ import annotations

from dataclasses import dataclass

from vdkit.disklib.connection import ConnectParams, connect
from vdkit.errors import UsageError
from vdkit.vsphere import access, snapshots
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What :func:`cleanup` took away, and what it found and left."""

    cleaned: int
    remaining: int


def prepare_for_access(params: ConnectParams, identity: str) -> None:
    """Keep the machine of ``params`` where it is; ``identity`` (at most 50 characters) names the program.

    Raises ObjectBusy while the machine is being relocated: to be called again, and only the call that returns
    is owed an :func:`end_access`. :func:`vdkit.vsphere.access.wait_for_access` is the loop around it. Raises
    NotSupported on a stand-alone host, NoPrivilege, and what logging in raises.
    """
    access.check_identity(identity)
    with connect(params) as connection:
        access.prepare_for_access(*_remote(connection.session, connection.vm), identity)


def end_access(params: ConnectParams, identity: str) -> None:
    """Let the machine be relocated again, also after a crash with the same identity.

    Raises as :func:`prepare_for_access`; a name that does not resolve is HostNotFound.
    """
    access.check_identity(identity)
    with connect(params) as connection:
        access.end_access(*_remote(connection.session, connection.vm), identity)


def cleanup(params: ConnectParams | None) -> Cleaned:
    """What an earlier run left: counts as VixDiskLib gives them. Local (None): nothing.

    VixDiskLib detaches disks that were hot-added and unmounts what was mounted. vdkit does neither yet, so
    nothing is taken away; vdkit's own snapshots on the machine count as remaining. They are removed by
    :func:`vdkit.jobs.cleanup.clean_up`, which can tell whether a run still uses them.
    """
    if params is None:
        return Cleaned(0, 0)
    with connect(params) as connection:
        session, vm = _remote(connection.session, connection.vm)
        return Cleaned(0, len(snapshots.find_leftovers(session, vm)))


def _remote(session: Session | None, vm: VirtualMachine | None) -> tuple[Session, VirtualMachine]:
    if session is None or vm is None:
        raise UsageError("a connection to a machine of a vCenter is needed")
    return session, vm
