"""Everything that the SOAP side knows: the model, the sessions, the tasks, and every managed object by id."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import VmomiSupport, vim, vmodl

from vdkit.net.secret import Secret
from vdkit.sim.clock import Clock
from vdkit.sim.faults import ModelFault, SnapshotFault
from vdkit.sim.firstclass import FirstClassDisks
from vdkit.sim.home import Hook
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.places import Entity
from vdkit.sim.scenario import Scenario
from vdkit.sim.soap.authorization import DisabledMethods
from vdkit.sim.soap.changes import Changes
from vdkit.sim.soap.collector import PropertyCollector
from vdkit.sim.soap.faults import invalid_argument, system_error
from vdkit.sim.soap.objects import Client, Managed
from vdkit.sim.soap.relocation import Relocations
from vdkit.sim.soap.sessions import Session, SessionManager, Sessions
from vdkit.sim.soap.tasks import Task, TaskManager
from vdkit.sim.tickets import TicketBox

if TYPE_CHECKING:
    from vdkit.sim.snapshot import Snapshot

#: Unexpected errors of handlers that are kept for whoever looks (a test), the newest last.
KEPT_ERRORS = 50
Resolver = Callable[[str], Managed | None]


def _nothing() -> None: ...


@dataclass(frozen=True)
class DataPort:
    """Where the data port of an ESXi host is. ``address`` empty: where the client found the management."""

    address: str
    port: int
    thumbprint: str


class World:
    """One per host. ``data_ports`` are what tickets name, by the id of the ESXi host."""

    def __init__(
        self, inventory: Inventory, tickets: TicketBox, scenario: Scenario, user: str, password: Secret
    ) -> None:
        self.inventory = inventory
        self.tickets = tickets
        self.scenario = scenario
        self.user = user
        self.password = password
        self.changes = Changes()
        self.disabled = DisabledMethods()
        self.relocations = Relocations(self)
        self.first_class_disks = FirstClassDisks(inventory)
        self.sessions = Sessions(inventory.clock, scenario.session_idle_seconds)
        self.data_ports: dict[str, DataPort] = {}
        #: Called before a ticket is issued.
        self.before_ticket: Callable[[], None] = _nothing
        #: Errors that no client caused: faults of the simulated host itself.
        self.internal_errors: deque[BaseException] = deque(maxlen=KEPT_ERRORS)
        self._fixed: dict[tuple[str, str], Managed] = {}
        self._resolvers: dict[str, Resolver] = {}
        self.tasks = TaskManager(self.manager_id("ha-taskmgr", "TaskManager"), self)
        self.add(self.tasks)
        self.add(SessionManager(self.manager_id("ha-sessionmgr", "SessionManager"), self))
        self._resolvers["Task"] = self.tasks.find
        self._undo = inventory.subscribe(self._model_changed)
        self._outer_hook: Hook = inventory.hook
        inventory.hook = self._hook

    @property
    def clock(self) -> Clock:
        return self.inventory.clock

    @property
    def is_vcenter(self) -> bool:
        return self.inventory.personality == "vcenter"

    def manager_id(self, host: str, vcenter: str) -> str:
        """Of the two ids of a well-known object, the one of this personality."""
        return vcenter if self.is_vcenter else host

    def task_id(self, number: int, method: str, entity: Managed) -> str:
        """As hosts make them: ``task-12``, or ``haTask-1-vim.VirtualMachine.createSnapshot-12`` on ESXi."""
        if self.is_vcenter:
            return f"task-{number}"
        owner = VmomiSupport.GetWsdlMethod("urn:vim25", method).info
        return f"haTask-{entity.moid}-{owner.type.__name__}.{owner.name[0].lower()}{owner.name[1:]}-{number}"

    def close(self) -> None:
        """Wake everybody who waits and wait for the tasks at work. Twice is fine."""
        if self.changes.closed:
            return
        self.changes.close()
        self.tasks.stop()
        self.sessions.close_all()
        self._undo()
        self.inventory.hook = self._outer_hook

    # -- objects ---------------------------------------------------------------------------------

    def add(self, managed: Managed) -> Managed:
        """An object that is there for as long as the host."""
        self._fixed[managed.key] = managed
        return managed

    def resolve_with(self, kind: str, resolver: Resolver) -> None:
        """Objects of ``kind`` come and go; the resolver knows those that are there now."""
        self._resolvers[kind] = resolver

    def fixed(self, kind: str) -> Iterator[Managed]:
        """The lasting objects of a kind."""
        return (one for one in self._fixed.values() if one.kind == kind)

    def find(self, ref: Any, session: Session | None = None) -> Managed | None:
        """The object of a reference as a session sees it; None if there is none."""
        kind, moid = type(ref)._wsdlName, ref._moId
        if session is not None:
            own = session.find(kind, moid)
            if own is not None:
                return own
        found = self._fixed.get((kind, moid))
        if found is None and kind in self._resolvers:
            found = self._resolvers[kind](moid)
        return found

    def machine_of(self, ref: Any, name: str) -> Machine:
        """The model's machine of a parameter ``name``. Raises InvalidArgument, ManagedObjectNotFound."""
        if ref is None:
            raise invalid_argument(name)
        return self.inventory.machine(ref._moId)

    def snapshot_of(self, ref: Any) -> tuple[Machine, Snapshot]:
        """Raises ManagedObjectNotFound."""
        return self.inventory.snapshot(ref._moId)

    # -- sessions --------------------------------------------------------------------------------

    def session_of(self, cookie: str | None) -> Session | None:
        """The living session of a ``Cookie`` header, if the scenario lets it live for one more call."""
        self.sessions.idle_seconds = self.scenario.session_idle_seconds
        self.sessions.most_calls = self.scenario.session_calls
        return self.sessions.of_cookie(cookie)

    def open_session(self, user: str, client: Client) -> Session:
        self.sessions.idle_seconds = self.scenario.session_idle_seconds
        session = self.sessions.open(user, client.agent, client.address)
        session.add(PropertyCollector(self.collector_id, self, session))
        session.add(SessionManager(self.manager_id("ha-sessionmgr", "SessionManager"), self, session))
        return session

    @property
    def collector_id(self) -> str:
        return self.manager_id("ha-property-collector", "propertyCollector")

    # -- what may go wrong -----------------------------------------------------------------------

    def before_task(self, task: Task, method: str) -> None:
        """Take the time that the scenario asks for, then fail if it says so."""
        seconds = self.scenario.task_seconds.get(method, 0.0)
        if seconds:
            task.take(seconds)
        task.check()
        named = self.scenario.task_errors.get(method)
        if named is not None:
            raise fault_named(named)

    def check_host(self, host: Entity) -> None:
        """Raises what a host raises that is in maintenance mode, or that its vCenter has lost."""
        if host.name in self.scenario.hosts_disconnected:
            raise vmodl.fault.HostNotConnected(
                msg="Unable to communicate with the remote host, since it is disconnected."
            )
        if host.name in self.scenario.hosts_in_maintenance:
            raise vim.fault.InvalidHostState(
                msg="The operation is not allowed in the current state of the host.",
                host=vim.HostSystem(host.moref),
            )

    def note_error(self, error: BaseException) -> None:
        """Remember what is neither a fault of the API nor of the model: a mistake in the host."""
        if not isinstance(error, ModelFault | vmodl.MethodFault):
            self.internal_errors.append(error)

    def _model_changed(self, _machine: Machine) -> None:
        self.changes.bump()

    def _hook(self, event: str, machine: Machine) -> None:
        self._outer_hook(event, machine)
        if event == "consolidate":
            self.wait(self.scenario.consolidation_seconds)
            if self.scenario.consolidation_fails:
                raise SnapshotFault("Unable to consolidate the disks: the storage did not answer in time")

    def wait(self, seconds: float) -> None:
        """Let that much of the host's time pass, or less if the host stops."""
        start = self.clock.monotonic()
        while self.clock.monotonic() - start < seconds and not self.changes.closed:
            time.sleep(min(seconds, 0.005))


def fault_named(name: str) -> Any:
    """A fault by its API name, with or without ``vim.fault.`` or ``vmodl.fault.`` before it."""
    for full in (name, f"vim.fault.{name}", f"vmodl.fault.{name}"):
        try:
            kind = VmomiSupport.GetVmodlType(full)
        except KeyError:
            continue
        fault = kind(msg=f"Simulated fault: {name}")
        for info in kind._GetPropertyList():
            if info.name == "invalidProperty":
                fault.invalidProperty = "startOffset"
                fault.msg = "A specified parameter was not correct: startOffset"
            elif info.name == "file":
                fault.file = "[datastore1] simulated"
        return fault
    return system_error(f"the scenario names a fault that does not exist: {name}")
