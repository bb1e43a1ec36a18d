"""Waiting until the disks of a machine are in one piece again after a snapshot was removed.

A removal can end while the host still merges (slow storage), or leave the merging for later and say so. A
snapshot that is made in between has cost other programs data: ours waits before it makes one and after it
removed one.

Source: the vSphere Web Services API reference (VirtualMachineRuntimeInfo.consolidationNeeded,
ConsolidateVMDisks_Task, Task).
"""

from __future__ import annotations

import time
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import ObjectNotFound, SnapshotFailed, VixError
from vdkit.vsphere import tasks
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session

#: Tasks that merge disks, by the id of their description, lower case.
_MERGING: Final = ("removesnapshot", "removeallsnapshots", "consolidatedisks", "remove", "removeall")
#: Times that consolidation is asked for before we give up.
MAX_ROUNDS: Final = 5
#: Seconds between two looks at a merge that somebody else runs.
POLL: Final = 1.0


def settle(
    session: Session,
    vm: VirtualMachine,
    *,
    deadline: float = tasks.DEFAULT_DEADLINE,
    consolidate: bool = True,
) -> None:
    """Return once no merge is running and none is outstanding; ``deadline`` is in seconds.

    With ``consolidate`` an outstanding merge is started. Raises SnapshotFailed.
    """
    until = time.monotonic() + deadline
    what = f"consolidate the disks of {vm.name} ({vm.moref})"
    for _ in range(MAX_ROUNDS):
        _wait_for_merges(session, vm, what, until)
        if not is_outstanding(session, vm):
            return
        if not consolidate:
            break
        _consolidate(session, vm, what, max(1.0, until - time.monotonic()))
    raise SnapshotFailed(
        f"{session.where}: {what}: the host still says that consolidation is needed",
        remedy="see in the host's client what holds the disks (a backup appliance with a disk attached?), "
        "then consolidate there",
    )


def is_outstanding(session: Session, vm: VirtualMachine) -> bool:
    """True if the host says that disks of the machine wait for consolidation."""
    row = of_one(
        session, vim.VirtualMachine, vm.moref, ("runtime.consolidationNeeded",), f"look at {vm.name}"
    )
    return bool(row.get("runtime.consolidationNeeded", False))


def merges_running(session: Session, vm: VirtualMachine) -> list[str]:
    """Ids of the tasks that merge disks of the machine now."""
    row = of_one(session, vim.VirtualMachine, vm.moref, ("recentTask",), f"look at the tasks of {vm.name}")
    return [task._GetMoId() for task in row.get("recentTask", ()) if _is_merging(session, task)]


def _is_merging(session: Session, task: Any) -> bool:
    paths = ("info.state", "info.descriptionId")
    try:
        row = of_one(session, vim.Task, task._GetMoId(), paths, "look at a task")
    except ObjectNotFound:
        return False  # it has been forgotten, hence has ended
    act = str(row.get("info.descriptionId", "")).rsplit(".", 1)[-1].lower().removesuffix("_task")
    return str(row.get("info.state")) in ("queued", "running") and act in _MERGING


def _wait_for_merges(session: Session, vm: VirtualMachine, what: str, until: float) -> None:
    while running := merges_running(session, vm):
        if time.monotonic() > until:
            raise SnapshotFailed(
                f"{session.where}: {what}: {', '.join(running)} is still merging disks at the deadline",
                remedy="let it end at the host, then run the command again",
            )
        session.sleep(POLL)


def _consolidate(session: Session, vm: VirtualMachine, what: str, deadline: float) -> None:
    machine = session.managed(vim.VirtualMachine, vm.moref)
    try:
        tasks.run(session, what, machine.ConsolidateVMDisks_Task, deadline=deadline)
    except VixError as error:
        if not error.retryable:
            raise
        # Busy: somebody else merges. The next round waits for them.
        session.sleep(POLL)
