"""Container views and list views: live lists of objects that belong to a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.soap.faults import invalid_argument, not_found
from vdkit.sim.soap.objects import Call, Managed, call, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.sessions import Session
    from vdkit.sim.soap.world import World

#: Where the objects under a container are found, by its type.
_CHILDREN = (
    (vim.Folder, ("childEntity",)),
    (vim.Datacenter, ("vmFolder", "hostFolder", "datastoreFolder", "networkFolder", "datastore", "network")),
    (vim.ComputeResource, ("host", "resourcePool")),
    (vim.ResourcePool, ("resourcePool", "vm")),
    (vim.HostSystem, ("vm",)),
)


def _view_id() -> str:
    return f"session[{uuid.uuid4()}]{uuid.uuid4()}"


class View(Managed):
    def __init__(self, world: World, session: Session) -> None:
        super().__init__(_view_id())
        self._world = world
        self._session = session

    @call("DestroyView")
    def destroy(self, _call: Call) -> None:
        self._session.remove(self)
        self._world.changes.bump()


class ContainerView(View):
    kind = "ContainerView"

    def __init__(
        self, world: World, session: Session, container: Managed, kinds: list[Any], recursive: bool
    ) -> None:
        super().__init__(world, session)
        self._container = container
        self._kinds = tuple(kinds) or (vim.ManagedEntity,)
        self._recursive = recursive

    @prop("container")
    def container(self) -> Any:
        return self._container.ref

    @prop("type")
    def types(self) -> list[Any]:
        return list(self._kinds)

    @prop("recursive")
    def recursive(self) -> bool:
        return self._recursive

    @prop("view")
    def view(self) -> list[Any]:
        return [one.ref for one in self._walk() if issubclass(one.type, self._kinds)]

    def _walk(self) -> Iterator[Managed]:
        seen = {self._container.key}
        waiting = [self._container]
        while waiting:
            for child in self._children(waiting.pop(0)):
                if child.key in seen:
                    continue
                seen.add(child.key)
                yield child
                if self._recursive:
                    waiting.append(child)

    def _children(self, managed: Managed) -> Iterator[Managed]:
        for kind, names in _CHILDREN:
            if not issubclass(managed.type, kind):
                continue
            for name in names:
                value = managed.read(name)
                for ref in value if isinstance(value, list) else [value]:
                    child = None if ref is None else self._world.find(ref, self._session)
                    if child is not None:
                        yield child


class ListView(View):
    kind = "ListView"

    def __init__(self, world: World, session: Session, listed: list[Any]) -> None:
        super().__init__(world, session)
        self._listed = list(listed)

    @prop("view")
    def view(self) -> list[Any]:
        return [ref for ref in self._listed if self._world.find(ref, self._session) is not None]

    @call("ModifyListView")
    def modify(self, call: Call) -> list[Any]:
        """Returns what could not be added."""
        removed = set(call.remove)
        self._listed = [ref for ref in self._listed if ref not in removed]
        lost = [ref for ref in call.add if self._world.find(ref, self._session) is None]
        self._listed += [ref for ref in call.add if ref not in self._listed and ref not in lost]
        self._world.changes.bump()
        return lost

    @call("ResetListView")
    def reset(self, call: Call) -> list[Any]:
        lost = [ref for ref in call.obj if self._world.find(ref, self._session) is None]
        self._listed = [ref for ref in call.obj if ref not in lost]
        self._world.changes.bump()
        return lost


class ViewManager(Managed):
    kind = "ViewManager"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    @call("CreateContainerView")
    def create_container_view(self, call: Call) -> Any:
        if call.container is None:
            raise invalid_argument("container")
        container = self._world.find(call.container, call.session)
        if container is None:
            raise not_found(call.container)
        if not any(issubclass(container.type, kind) for kind, _ in _CHILDREN):
            raise invalid_argument("container")
        view = ContainerView(self._world, call.session, container, list(call.type), bool(call.recursive))
        call.session.add(view)
        return view.ref

    @call("CreateListView")
    def create_list_view(self, call: Call) -> Any:
        view = ListView(self._world, call.session, call.obj)
        call.session.add(view)
        return view.ref
