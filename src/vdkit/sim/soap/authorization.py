"""Who may do what, and methods that somebody has disabled for one object.

Disabling and enabling methods is not in the published API; names and parameters are those of govmomi's
``object/authorization_manager_internal.go`` (Apache-2.0), see :mod:`vdkit.wire.vim.internal`. What is
disabled shows in the published property ``disabledMethod`` and in the published fault MethodDisabled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pyVmomi import VmomiSupport, vim, vmodl

from vdkit.sim.faults import TaskInProgress
from vdkit.sim.soap.codec import NAMESPACE
from vdkit.sim.soap.faults import invalid_argument, method_not_found, not_found
from vdkit.sim.soap.objects import Call, Managed, call, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.sessions import Session
    from vdkit.sim.soap.world import World

#: The most characters of a source id.
MAX_SOURCE: Final = 50
_RELOCATE: Final = "RelocateVM_Task"
#: The one role that there is: ``effectiveRole`` of every object.
_ADMIN: Final = -1

#: Privileges that the account has unless the scenario says that it lacks them.
PRIVILEGES: Final = (
    *("System.Anonymous", "System.View", "System.Read"),
    *("Cryptographer.Access", "Cryptographer.AddDisk", "Cryptographer.EncryptNew"),
    *("Datastore.AllocateSpace", "Datastore.Browse", "Datastore.FileManagement"),
    *("Global.CancelTask", "Global.DisableMethods", "Global.EnableMethods", "Global.Licenses"),
    "Network.Assign",
    *("Resource.AssignVMToPool", "Resource.ColdMigrate", "Resource.HotMigrate"),
    *("Sessions.TerminateSession", "Sessions.ValidateSession", "StorageProfile.View"),
    *(
        f"VirtualMachine.Config.{name}"
        for name in (
            *("AddExistingDisk", "AddNewDisk", "AdvancedConfig", "Annotation", "CPUCount", "ChangeTracking"),
            *("DiskExtend", "DiskLease", "EditDevice", "Memory", "RawDevice", "RemoveDisk", "Rename"),
            *("Resource", "Settings"),
        )
    ),
    *(f"VirtualMachine.Interact.{name}" for name in ("Backup", "PowerOff", "PowerOn", "Reset")),
    *(f"VirtualMachine.Inventory.{name}" for name in ("Create", "Delete", "Register", "Unregister")),
    *(
        f"VirtualMachine.Provisioning.{name}"
        for name in ("Clone", "DiskRandomAccess", "DiskRandomRead", "GetVmFiles", "PutVmFiles")
    ),
    *(
        f"VirtualMachine.State.{name}"
        for name in ("CreateSnapshot", "RemoveSnapshot", "RenameSnapshot", "RevertToSnapshot")
    ),
)


@dataclass(frozen=True)
class _Hold:
    source: str
    #: The session that it ends with; None if it stays.
    session: Session | None

    @property
    def ended(self) -> bool:
        return self.session is not None and self.session.closed


class DisabledMethods:
    """Which methods are disabled for which object, and by whom; one source counts once, several each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: dict[tuple[tuple[str, str], str], list[_Hold]] = {}

    def disable(
        self, key: tuple[str, str], methods: Iterable[str], source: str, session: Session | None
    ) -> None:
        """``key`` is that of the object; with ``session``, for as long as that lasts."""
        with self._lock:
            for method in methods:
                holds = self._holds.setdefault((key, method), [])
                holds[:] = [hold for hold in holds if hold.source != source]
                holds.append(_Hold(source, session))

    def enable(self, key: tuple[str, str], methods: Iterable[str], source: str) -> None:
        """Undo what ``source`` did, and nobody else."""
        with self._lock:
            for method in methods:
                holds = self._holds.get((key, method), [])
                holds[:] = [hold for hold in holds if hold.source != source]

    def of(self, key: tuple[str, str]) -> list[str]:
        """WSDL names of the methods that are disabled for an object."""
        with self._lock:
            holds = list(self._holds.items())
        return sorted(
            method for (owner, method), all_ in holds if owner == key and any(not h.ended for h in all_)
        )

    def sources(self, key: tuple[str, str], method: str) -> list[str]:
        """Who keeps a method disabled, the first one first."""
        with self._lock:
            return [hold.source for hold in self._holds.get((key, method), ()) if not hold.ended]


def as_methods(names: Iterable[str]) -> list[Any]:
    """Methods as the property ``disabledMethod`` carries them."""
    return [VmomiSupport.GetWsdlMethod(NAMESPACE, name) for name in names]


class AuthorizationManager(Managed):
    """One account, one role; the scenario says which privileges it lacks."""

    kind = "AuthorizationManager"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    # -- methods switched off --------------------------------------------------------------------

    @call("DisableMethods")
    def disable_methods(self, call: Call) -> None:
        targets, source = self._machines(call), self._source(call)
        names = [request.method for request in call.method]
        _known(names)
        for target in targets:
            if _RELOCATE in names and _is_relocating(target):
                # Whoever wants a machine to stay where it is has to wait until it is there.
                raise TaskInProgress(f"{target.read('name')} is being relocated")
        session = call.session if call.sessionScope else None
        for target in targets:
            self._world.disabled.disable(target.key, names, source, session)
        self._world.changes.bump()

    @call("EnableMethods")
    def enable_methods(self, call: Call) -> None:
        targets, source = self._machines(call), self._source(call)
        _known(call.method)
        for target in targets:
            self._world.disabled.enable(target.key, call.method, source)
        self._world.changes.bump()

    def _machines(self, call: Call) -> list[Managed]:
        if not self._world.is_vcenter:
            raise method_not_found(self.ref, "DisableMethods")
        return self._objects(call.entity, "entity", call.session)

    def _objects(self, refs: Any, parameter: str, session: Session) -> list[Managed]:
        if not refs:
            raise invalid_argument(parameter)
        found = [(ref, self._world.find(ref, session)) for ref in refs]
        for ref, managed in found:
            if managed is None:
                raise not_found(ref)
        return [managed for _, managed in found if managed is not None]

    @staticmethod
    def _source(call: Call) -> str:
        source: str = call.sourceId or ""
        if not 0 < len(source) <= MAX_SOURCE:
            raise invalid_argument("sourceId")
        return source

    # -- privileges ------------------------------------------------------------------------------

    def _granted(self, privilege: str) -> bool:
        return privilege in PRIVILEGES and privilege not in self._world.scenario.missing_privileges

    def _availability(self, call: Call, refs: Any, parameter: str) -> list[Any]:
        found = self._objects(refs, parameter, call.session)
        kind = vim.AuthorizationManager
        return [
            kind.EntityPrivilege(
                entity=one.ref,
                privAvailability=[
                    kind.PrivilegeAvailability(privId=name, isGranted=self._granted(name))
                    for name in call.privId
                ],
            )
            for one in found
        ]

    def _check_user(self, call: Call) -> None:
        if call.userName != self._world.user:
            raise vim.fault.UserNotFound(
                msg="The user was not found.", principal=call.userName, unresolved=True
            )

    @call("HasPrivilegeOnEntities")
    def has_on_entities(self, call: Call) -> list[Any]:
        self._check_session(call)
        return self._availability(call, call.entity, "entity")

    @call("HasPrivilegeOnEntity")
    def has_on_entity(self, call: Call) -> list[bool]:
        self._check_session(call)
        self._objects([call.entity], "entity", call.session)
        return [self._granted(name) for name in call.privId]

    def _check_session(self, call: Call) -> None:
        if not any(one.key == call.sessionId for one in self._world.sessions.all()):
            raise invalid_argument("sessionId")

    @call("HasUserPrivilegeOnEntities")
    def user_has_on_entities(self, call: Call) -> list[Any]:
        self._check_user(call)
        return self._availability(call, call.entities, "entities")

    @call("FetchUserPrivilegeOnEntities")
    def fetch(self, call: Call) -> list[Any]:
        self._check_user(call)
        names = [name for name in PRIVILEGES if self._granted(name)]
        result = vim.AuthorizationManager.UserPrivilegeResult
        return [
            result(entity=one.ref, privileges=names)
            for one in self._objects(call.entities, "entities", call.session)
        ]

    @call("RetrieveEntityPermissions")
    def permissions(self, call: Call) -> list[Any]:
        (entity,) = self._objects([call.entity], "entity", call.session)
        root = vim.Folder(self._world.inventory.root_folder.moref)
        if entity.moid != root._moId and not call.inherited:
            return []
        return [self._permission(root)]

    @call("RetrieveAllPermissions")
    def all_permissions(self, _call: Call) -> list[Any]:
        return [self._permission(vim.Folder(self._world.inventory.root_folder.moref))]

    def _permission(self, entity: Any) -> Any:
        return vim.AuthorizationManager.Permission(
            entity=entity, principal=self._world.user, group=False, roleId=_ADMIN, propagate=True
        )

    @prop("roleList")
    def roles(self) -> list[Any]:
        names = [name for name in PRIVILEGES if self._granted(name)]
        info = vim.Description(label="Administrator", summary="Full access rights")
        return [
            vim.AuthorizationManager.Role(
                roleId=_ADMIN, system=True, name="Admin", info=info, privilege=names
            )
        ]

    @prop("privilegeList")
    def privileges(self) -> list[Any]:
        return [
            vim.AuthorizationManager.Privilege(
                privId=name,
                onParent=False,
                name=name.rpartition(".")[2],
                privGroupName=name.rpartition(".")[0],
            )
            for name in PRIVILEGES
        ]


def _known(names: Iterable[str]) -> None:
    for name in names:
        try:
            VmomiSupport.GetWsdlMethod(NAMESPACE, name)
        except KeyError:
            raise invalid_argument("method") from None


def _is_relocating(target: Managed) -> bool:
    world: World | None = getattr(target, "world", None)
    return world is not None and any(
        task.started_by == _RELOCATE and not task.done for task in world.tasks.of(target)
    )


def method_disabled(source: str) -> vmodl.MethodFault:
    """What a call of a disabled method gets."""
    return vim.fault.MethodDisabled(msg=f"The method is disabled by '{source}'", source=source)
