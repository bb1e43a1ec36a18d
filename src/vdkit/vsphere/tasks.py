"""Waiting for tasks of the host, with a deadline and progress.

Source: the vSphere Web Services API reference (Task, TaskInfo). Only single properties of ``info`` are asked
for: some servers put an object there that pyVmomi's tables refuse in ``info.entity``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from vdkit.block.workers import CancelToken
from vdkit.errors import Cancelled, ConnectionLost, ObjectNotFound, TaskFailed
from vdkit.vsphere.faults import translate
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import Row, of_one
from vdkit.vsphere.session import Session

#: Seconds a task may take when the caller gives no deadline: consolidating a large disk takes hours.
DEFAULT_DEADLINE: Final = 6 * 3600.0
#: Seconds between two looks: first, growth factor, longest.
FIRST_POLL: Final = 0.05
POLL_GROWTH: Final = 1.5
LONGEST_POLL: Final = 2.0

_PATHS: Final = ("info.state", "info.progress", "info.error", "info.result")


@dataclass(frozen=True, slots=True)
class Running:
    """A task of a machine that has not ended. ``act`` is what it does, lower case: ``removesnapshot``."""

    moref: str
    act: str
    percent: int | None


def running(session: Session, vm: VirtualMachine) -> list[Running]:
    """The tasks of a machine that wait or are at work now."""
    row = of_one(session, vim.VirtualMachine, vm.moref, ("recentTask",), f"look at the tasks of {vm.name}")
    found = (_look(session, task._GetMoId()) for task in row.get("recentTask", ()))
    return [task for task in found if task is not None]


def _look(session: Session, moref: str) -> Running | None:
    paths = ("info.state", "info.descriptionId", "info.progress")
    try:
        row = of_one(session, vim.Task, moref, paths, "look at a task")
    except ObjectNotFound:
        return None  # it has been forgotten, hence has ended
    if str(row.get("info.state")) not in ("queued", "running"):
        return None
    act = str(row.get("info.descriptionId", "")).rsplit(".", 1)[-1].lower().removesuffix("_task")
    return Running(moref, act, row.get("info.progress"))


def run(
    session: Session,
    what: str,
    start: Callable[[], Any],
    *,
    deadline: float = DEFAULT_DEADLINE,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Any:
    """Start a task and wait for it; returns its result.

    ``what`` names the act and its object for messages; ``deadline`` is in seconds; ``progress`` gets per
    cent. Raises what the task's fault means, TaskFailed, or ConnectionLost where nobody knows how it ended.
    """
    task = session.call(what, start)
    return wait(session, what, task._GetMoId(), deadline=deadline, progress=progress, cancel=cancel)


def wait(
    session: Session,
    what: str,
    moref: str,
    *,
    deadline: float = DEFAULT_DEADLINE,
    progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Any:
    """Wait for a task that has been started. See :func:`run`."""
    until = time.monotonic() + deadline
    pause = FIRST_POLL
    while True:
        row = _ask(session, what, moref)
        match str(row.get("info.state")):
            case "success":
                if progress is not None:
                    progress(100)
                return row.get("info.result")
            case "error":
                fault = row.get("info.error")
                if fault is None:
                    raise TaskFailed(f"{session.where}: {what}: the task failed without saying why")
                raise translate(fault, where=session.where, what=what) from fault
            case "running" | "queued":
                pass
            case other:
                raise TaskFailed(f"{session.where}: {what}: the task is in an unknown state {other!r}")
        if progress is not None and row.get("info.progress") is not None:
            progress(int(row.get("info.progress")))
        if cancel is not None and cancel.cancelled:
            raise Cancelled(f"{session.where}: {what}: no longer waiting, the task goes on at the host")
        if time.monotonic() > until:
            raise TaskFailed(
                f"{session.where}: {what}: the task has not ended after {deadline:.0f} s",
                remedy=f"it still runs at the host as {moref}; wait for it there and run the command again",
            )
        session.sleep(pause)
        pause = min(pause * POLL_GROWTH, LONGEST_POLL)


def _ask(session: Session, what: str, moref: str) -> Row:
    """A restarted service knows no task of before. What it did is unknown: not that its object is gone."""
    try:
        return of_one(session, vim.Task, moref, _PATHS, what)
    except ObjectNotFound as error:
        raise ConnectionLost(
            f"{session.where}: {what}: the host has forgotten {moref}, which may have ended or still run",
            remedy="was its management service restarted? Run the command again",
        ) from error
