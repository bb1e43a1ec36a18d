"""The property collector: reading many properties of many objects, in pages, and waiting for changes."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from vdkit.errors import VixError
from vdkit.sim.soap import paths, updates
from vdkit.sim.soap.faults import as_fault, invalid_argument, not_authenticated
from vdkit.sim.soap.objects import Call, Managed, call, prop
from vdkit.sim.soap.selection import Find, Selection, validate, wanted_paths

if TYPE_CHECKING:
    from vdkit.sim.soap.sessions import Session
    from vdkit.sim.soap.world import World

PC = vmodl.query.PropertyCollector
#: Unfinished retrievals, and filters, that one collector keeps.
MAX_PAGES = 64
MAX_FILTERS = 256


def read_properties(managed: Managed, names: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """Values that are set, by path, and a ``MissingProperty`` for each that could not be read."""
    values: dict[str, Any] = {}
    missing: list[Any] = []
    for path in names:
        try:
            value = paths.read(managed, path)
        except VixError as error:
            missing.append(PC.MissingProperty(path=path, fault=as_fault(error)))
        except vmodl.MethodFault as fault:
            missing.append(PC.MissingProperty(path=path, fault=fault))
        else:
            if value is not None:
                values[path] = value
    return values, missing


def retrieve(spec: Any, find: Find) -> list[Any]:
    """An ``ObjectContent`` for every object that the specification selects and asks something of."""
    validate(spec)
    contents = []
    for managed in Selection(spec, find).objects.values():
        names = wanted_paths(spec, managed)
        if names is None:
            continue
        values, missing = read_properties(managed, names)
        properties = [vmodl.DynamicProperty(name=path, val=value) for path, value in values.items()]
        contents.append(PC.ObjectContent(obj=managed.ref, propSet=properties, missingSet=missing))
    return contents


class Filter(Managed):
    """A standing question; its collector reports what changes in the answer."""

    kind = "PropertyFilter"

    def __init__(self, moid: str, spec: Any, partial: bool, owner: PropertyCollector) -> None:
        super().__init__(moid)
        self.spec = spec
        self._partial = partial
        self._owner = owner

    @prop("spec")
    def given(self) -> Any:
        return self.spec

    @prop("partialUpdates")
    def partial(self) -> bool:
        return self._partial

    @call("DestroyPropertyFilter")
    def destroy(self, _call: Call) -> None:
        self._owner.forget(self)


class PropertyCollector(Managed):
    """Each session has its own under the well-known id, and may make more."""

    kind = "PropertyCollector"

    def __init__(self, moid: str, world: World, session: Session) -> None:
        super().__init__(moid)
        self._world = world
        self._session = session
        self._lock = threading.Lock()
        self._pages: dict[str, list[Any]] = {}
        self._filters: dict[str, Filter] = {}
        self._cancelled = 0
        self._destroyed = False
        self._made_by_client = False
        self._reported = updates.Reported()

    def _find(self, ref: Any) -> Managed | None:
        return self._world.find(ref, self._session)

    @prop("filter")
    def filters(self) -> list[Any]:
        with self._lock:
            return [one.ref for one in self._filters.values()]

    # -- reading ---------------------------------------------------------------------------------

    @call("RetrieveProperties")
    def retrieve_all(self, call: Call) -> list[Any]:
        return [content for spec in call.specSet for content in retrieve(spec, self._find)]

    @call("RetrievePropertiesEx")
    def retrieve_paged(self, call: Call) -> Any:
        contents = self.retrieve_all(call)
        limit = self._world.scenario.page_objects
        asked = call.options.maxObjects if call.options is not None else None
        if asked is not None:
            if asked < 1:
                raise invalid_argument("options.maxObjects")
            limit = asked if limit is None else min(limit, asked)
        return self._page(contents, limit) if contents else None

    @call("ContinueRetrievePropertiesEx")
    def retrieve_more(self, call: Call) -> Any:
        with self._lock:
            kept = self._pages.pop(call.token or "", None)
        if kept is None:
            raise invalid_argument("token")
        limit, contents = kept[0], kept[1:]
        return self._page(contents, limit)

    @call("CancelRetrievePropertiesEx")
    def retrieve_no_more(self, call: Call) -> None:
        with self._lock:
            if self._pages.pop(call.token or "", None) is None:
                raise invalid_argument("token")

    def _page(self, contents: list[Any], limit: int | None) -> Any:
        if limit is None or len(contents) <= limit:
            return PC.RetrieveResult(objects=contents)
        token = secrets.token_hex(8)
        with self._lock:
            if len(self._pages) >= MAX_PAGES:
                self._pages.pop(next(iter(self._pages)))
            self._pages[token] = [limit, *contents[limit:]]
        return PC.RetrieveResult(token=token, objects=contents[:limit])

    # -- collectors and filters ------------------------------------------------------------------

    @call("CreatePropertyCollector")
    def create_collector(self, _call: Call) -> Any:
        made = PropertyCollector(f"session[{secrets.token_hex(8)}]", self._world, self._session)
        made._made_by_client = True
        self._session.add(made)
        return made.ref

    @call("DestroyPropertyCollector")
    def destroy(self, _call: Call) -> None:
        if not self._made_by_client:
            raise vmodl.fault.NotSupported(msg="The default property collector cannot be destroyed")
        with self._lock:
            filters = list(self._filters.values())
            self._destroyed = True
        for one in filters:
            self.forget(one)
        self._session.remove(self)
        self._world.changes.bump()

    @call("CreateFilter")
    def create_filter(self, call: Call) -> Any:
        spec = call.spec
        if spec is None:
            raise invalid_argument("spec")
        validate(spec)
        Selection(spec, self._find)
        made = Filter(f"session[{secrets.token_hex(8)}]", spec, bool(call.partialUpdates), self)
        with self._lock:
            if len(self._filters) >= MAX_FILTERS:
                raise vim.fault.InvalidState(msg="The collector holds too many filters; destroy some")
            self._filters[made.moid] = made
        self._session.add(made)
        self._world.changes.bump()
        return made.ref

    def forget(self, one: Filter) -> None:
        with self._lock:
            self._filters.pop(one.moid, None)
        self._session.remove(one)
        self._world.changes.bump()

    # -- waiting ---------------------------------------------------------------------------------

    @call("WaitForUpdatesEx")
    def wait_for_updates_ex(self, call: Call) -> Any:
        options = call.options
        seconds = options.maxWaitSeconds if options is not None else None
        limit = options.maxObjectUpdates if options is not None else None
        if seconds is not None and seconds < 0:
            raise invalid_argument("options.maxWaitSeconds")
        if limit is not None and limit < 1:
            raise invalid_argument("options.maxObjectUpdates")
        return self._wait(call.version, seconds, limit)

    @call("WaitForUpdates")
    def wait_for_updates(self, call: Call) -> Any:
        return self._wait(call.version, None, None)

    @call("CheckForUpdates")
    def check_for_updates(self, call: Call) -> Any:
        return self._wait(call.version, 0, None)

    @call("CancelWaitForUpdates")
    def cancel(self, _call: Call) -> None:
        with self._lock:
            self._cancelled += 1
        self._world.changes.bump()

    def _wait(self, version: str | None, seconds: int | None, limit: int | None) -> Any:
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            cancelled = self._cancelled
            self._reported.resume(version)
        while True:
            seen = self._world.changes.count()
            with self._lock:
                filters = list(self._filters.values())
                found = self._reported.collect(filters, self._answer, limit)
            if found is not None:
                return found
            self._world.changes.wait(seen, until)
            with self._lock:
                if self._cancelled != cancelled or self._destroyed:
                    raise vmodl.fault.RequestCanceled(msg="The request was canceled by a client.")
            if self._session.closed or self._world.changes.closed:
                raise not_authenticated(self.ref)
            if until is not None and time.monotonic() >= until:
                return None

    def _answer(self, one: Filter) -> updates.Answer:
        selection = Selection(one.spec, self._find_or_missing(one.spec))
        answer = updates.Answer()
        for managed in selection.objects.values():
            names = wanted_paths(one.spec, managed)
            if names is not None:
                values, missing = read_properties(managed, names)
                answer.objects[managed.key] = updates.ObjectState(managed.ref, values, missing)
        return answer

    def _find_or_missing(self, spec: Any) -> Callable[[Any], Managed | None]:
        """A start object that is gone leaves the filter; it does not make the wait fail."""
        gone = _Gone()
        starts = {id(start.obj) for start in spec.objectSet}

        def find(ref: Any) -> Managed | None:
            found = self._find(ref)
            return gone if found is None and id(ref) in starts else found

        return find


class _Gone(Managed):
    """Stands where a start object has been; it is of no type that anybody asks for."""

    kind = "ManagedObject"

    def __init__(self) -> None:
        super().__init__("")

    @property
    def type(self) -> Any:
        return object
