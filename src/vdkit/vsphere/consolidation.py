"""Waiting until the disks of a machine are in one piece again after a snapshot was removed.

A removal can end while the host still merges (slow storage), or leave the merging for later and say so. A
snapshot that is made in between has cost other programs data: ours waits before it makes one and after it
removed one.

Source: the vSphere Web Services API reference (VirtualMachineRuntimeInfo.consolidationNeeded,
ConsolidateVMDisks_Task, Task).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pyVmomi import vim

from vdkit.block.workers import CancelToken
from vdkit.errors import Cancelled, SnapshotFailed, VixError
from vdkit.vsphere import tasks
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session
from vdkit.vsphere.tasks import Running

#: Tasks that merge disks, by the id of their description, lower case.
_MERGING: Final = ("removesnapshot", "removeallsnapshots", "consolidatedisks", "remove", "removeall")
#: Times that consolidation is asked for before we give up.
MAX_ROUNDS: Final = 5
#: Seconds between two looks at a merge that somebody else runs.
POLL: Final = 1.0
#: Seconds between two words to whoever waits with us, unless the percentage has moved by as much.
TELL_SECONDS: Final = 30.0
TELL_PERCENT: Final = 10

#: Told now and then how far a merge is; one sentence.
Tell = Callable[[str], None]


def settle(
    session: Session,
    vm: VirtualMachine,
    *,
    deadline: float = tasks.DEFAULT_DEADLINE,
    consolidate: bool = True,
    tell: Tell | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Return once no merge is running and none is outstanding; ``deadline`` is in seconds.

    With ``consolidate`` an outstanding merge is started. ``tell`` hears that it waits, and how far the merge
    is; ``cancel`` ends the waiting, not the merge. Raises SnapshotFailed, Cancelled.
    """
    until = time.monotonic() + deadline
    what = f"consolidate the disks of {vm.name} ({vm.moref})"
    pace = Pace(vm.name, tell)
    for number in range(MAX_ROUNDS):
        if number:
            # Hosts take a moment to see that a merge has ended, and others' tasks may not show.
            session.sleep(number * POLL)
        _wait_for_merges(session, vm, what, until, pace, cancel)
        if not is_outstanding(session, vm):
            return
        if not consolidate:
            break
        _consolidate(session, vm, what, max(1.0, until - time.monotonic()), pace, cancel)
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
    return [task.moref for task in _merges(session, vm)]


def _merges(session: Session, vm: VirtualMachine) -> list[Running]:
    return [task for task in tasks.running(session, vm) if task.act in _MERGING]


class Pace:
    """Passes on how far a merge is, seldom enough to be read."""

    def __init__(self, name: str, tell: Tell | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._tell = tell
        self._clock = clock
        self._last: tuple[float, int] | None = None
        self._began: float | None = None

    def __call__(self, percent: int | None) -> None:
        if self._tell is None:
            return
        now, done = self._clock(), percent or 0
        if self._began is None:
            self._began = now
        if self._last is not None:
            at, before = self._last
            if now - at < TELL_SECONDS and abs(done - before) < TELL_PERCENT:
                return
        self._last = (now, done)
        far = "" if percent is None else f", {percent} %"
        self._tell(f"{self._name}: the host merges disks{far}, after {now - self._began:.0f} s")


def _wait_for_merges(
    session: Session, vm: VirtualMachine, what: str, until: float, pace: Pace, cancel: CancelToken | None
) -> None:
    while merging := _merges(session, vm):
        if cancel is not None and cancel.cancelled:
            raise Cancelled(f"{session.where}: {what}: no longer waiting, the merge goes on at the host")
        if time.monotonic() > until:
            raise SnapshotFailed(
                f"{session.where}: {what}: {', '.join(task.moref for task in merging)} is still merging "
                "disks at the deadline",
                remedy="let it end at the host, then run the command again",
            )
        pace(merging[0].percent)
        session.sleep(POLL)


def _consolidate(
    session: Session, vm: VirtualMachine, what: str, deadline: float, pace: Pace, cancel: CancelToken | None
) -> None:
    machine = session.managed(vim.VirtualMachine, vm.moref)
    try:
        tasks.run(
            session, what, machine.ConsolidateVMDisks_Task, deadline=deadline, progress=pace, cancel=cancel
        )
    except VixError as error:
        # Busy: somebody else merges. The next round waits for them.
        if not error.retryable:
            raise
