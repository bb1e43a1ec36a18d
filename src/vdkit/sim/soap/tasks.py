"""Tasks: work that takes time, on threads that are joined when the host stops."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import VmomiSupport, vim, vmodl

from vdkit.sim.soap.codec import NAMESPACE
from vdkit.sim.soap.faults import as_fault
from vdkit.sim.soap.objects import Call, Managed, call, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

#: Tasks at work at once; more wait as ``queued``.
WORKERS = 8
#: Finished tasks that can still be asked about, newest first, and those listed as recent.
KEPT = 1_000
RECENT = 20
#: Seconds between looks at the clock of a task that takes time.
_STEP = 0.005

Work = Callable[["Task"], Any]


class Task(Managed):
    """One task. ``work`` gets the task, reports :meth:`progress` and may :meth:`check` for cancellation."""

    kind = "Task"

    def __init__(self, moid: str, method: str, entity: Managed, user: str, world: World, work: Work) -> None:
        super().__init__(moid)
        self._method = method
        self.entity = entity
        self._entity_ref = entity.ref
        self._entity_name = entity.read("name") if "name" in entity._getters else None
        self._user = user
        self._world = world
        self._work = work
        self._lock = threading.Lock()
        self.state = "queued"
        self._progress: int | None = None
        self._result: Any = None
        self._error: Any = None
        self._cancelled = False
        self._queue_time = world.clock.now()
        self._start_time: datetime | None = None
        self._complete_time: datetime | None = None

    @property
    def started_by(self) -> str:
        """WSDL name of the method that started it."""
        return self._method

    @property
    def done(self) -> bool:
        return self.state in ("success", "error")

    def progress(self, percent: int) -> None:
        with self._lock:
            self._progress = percent
        self._world.changes.bump()

    def check(self) -> None:
        """Raise if somebody cancelled the task or the host stops."""
        if self._cancelled or self._world.changes.closed:
            raise vmodl.fault.RequestCanceled(msg="The task was canceled by a user.")

    def take(self, seconds: float) -> None:
        """Let that much of the host's time pass, reporting progress on the way."""
        start = self._world.clock.monotonic()
        pause = threading.Event()
        shown = 0
        while (gone := self._world.clock.monotonic() - start) < seconds:
            self.check()
            percent = int(90 * gone / seconds)
            if percent >= shown + 5:
                self.progress(percent)
                shown = percent
            pause.wait(min(_STEP, seconds))

    def run(self) -> None:
        self.begin()
        try:
            self._world.before_task(self, self._method)
            result, error = self._work(self), None
        except BaseException as raised:  # noqa: BLE001 - whatever happened is the task's error
            result, error = None, as_fault(raised)
            self._world.note_error(raised)
        with self._lock:
            self._result, self._error = result, error
            self.state = "error" if error is not None else "success"
            self._progress = None if error is not None else 100
            self._complete_time = self._world.clock.now()
        self._world.changes.bump()

    def begin(self) -> None:
        """Running, without any work of its own, until :meth:`end`."""
        with self._lock:
            self.state = "running"
            self._start_time = self._world.clock.now()
            self._progress = 0
        self._world.changes.bump()

    def end(self) -> None:
        with self._lock:
            self.state = "success"
            self._progress = 100
            self._complete_time = self._world.clock.now()
        self._world.changes.bump()

    @prop("info")
    def info(self) -> Any:
        with self._lock:
            method = VmomiSupport.GetWsdlMethod(NAMESPACE, self._method)
            owner = method.info.type.__name__.rpartition(".")[2]
            info = vim.TaskInfo(
                key=self.moid,
                task=self.ref,
                name=method,
                descriptionId=f"{owner}.{method.info.name[0].lower()}{method.info.name[1:]}",
                entityName=self._entity_name,
                state=self.state,
                cancelled=self._cancelled,
                cancelable=not self.done,
                result=self._result,
                error=self._error,
                progress=self._progress,
                reason=vim.TaskReasonUser(userName=self._user),
                queueTime=self._queue_time,
                startTime=self._start_time,
                completeTime=self._complete_time,
                eventChainId=0,
            )
            # The field holds managed entities only: a snapshot's task names the snapshot's machine.
            if isinstance(self._entity_ref, vim.ManagedEntity):
                info.entity = self._entity_ref
            return info

    @call("CancelTask")
    def cancel(self, _call: Call) -> None:
        with self._lock:
            if self.done:
                raise vim.fault.InvalidState(
                    msg="The operation is not allowed in the current state of the task."
                )
            self._cancelled = True
        self._world.changes.bump()


class TaskManager(Managed):
    kind = "TaskManager"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world
        self._lock = threading.Lock()
        self._count = 0
        self._tasks: dict[str, Task] = {}
        self._order: deque[str] = deque()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="sim-task")

    def find(self, moid: str) -> Task | None:
        with self._lock:
            return self._tasks.get(moid)

    def start(self, method: str, entity: Managed, user: str, work: Work, *, exclusive: bool = True) -> Any:
        """Queue work and return the task's reference; ``exclusive`` refuses a second one on one entity."""
        with self._lock:
            for other in self._unfinished_of(entity) if exclusive else ():
                text = "Another task is already in progress."
                raise vim.fault.TaskInProgress(msg=text, task=other.ref)
            task = self._add(method, entity, user, work)
        self._workers.submit(task.run)
        self._world.changes.bump()
        return task.ref

    def hold(self, method: str, entity: Managed, user: str) -> Task | None:
        """A task that runs until it is told to end; None while another one is at work on the entity."""
        with self._lock:
            if self._unfinished_of(entity):
                return None
            task = self._add(method, entity, user, lambda _task: None)
            task.begin()
        return task

    def _add(self, method: str, entity: Managed, user: str, work: Work) -> Task:
        self._count += 1
        moid = self._world.task_id(self._count, method, entity)
        task = Task(moid, method, entity, user, self._world, work)
        self._tasks[task.moid] = task
        self._order.append(task.moid)
        self._forget_old()
        return task

    def _unfinished_of(self, entity: Managed) -> list[Task]:
        return [task for task in self._tasks.values() if not task.done and task.entity.key == entity.key]

    def _forget_old(self) -> None:
        while len(self._order) > KEPT and self._tasks[self._order[0]].done:
            del self._tasks[self._order.popleft()]

    def forget(self) -> None:
        """No id of before is known any more, as after a restart of the service; what is at work goes on."""
        with self._lock:
            self._tasks.clear()
            self._order.clear()

    def of(self, entity: Managed) -> list[Task]:
        """The tasks of an entity that have not ended."""
        with self._lock:
            return self._unfinished_of(entity)

    def recent_of(self, entity: Managed) -> list[Any]:
        return [task.ref for task in self.of(entity)]

    def stop(self) -> None:
        """Wait for the tasks at work; the changes have been closed, so those that take time give up."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    @prop("recentTask")
    def recent(self) -> list[Any]:
        with self._lock:
            return [self._tasks[moid].ref for moid in list(self._order)[-RECENT:]]

    @prop("maxCollector")
    def max_collector(self) -> int:
        return 32
