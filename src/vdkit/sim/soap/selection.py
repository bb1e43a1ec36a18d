"""What a filter specification selects: objects by traversal, and paths for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from vdkit.sim.soap import paths
from vdkit.sim.soap.faults import invalid_argument, not_found
from vdkit.sim.soap.objects import Managed

Find = Callable[[Any], Managed | None]
#: Objects that one specification may reach, and specifications in a call: far above any inventory of tests.
MAX_OBJECTS = 100_000
MAX_SPECS = 1_000


class Selection:
    """The objects that a ``FilterSpec`` selects now, in the order of the traversal, without repetition."""

    def __init__(self, spec: Any, find: Find) -> None:
        self._find = find
        self._named = {s.name: s for s in _all_selections(spec) if _is_traversal(s) and s.name}
        self._seen: set[tuple[tuple[str, str], int]] = set()
        self.objects: dict[tuple[str, str], Managed] = {}
        #: References of the specification itself that lead nowhere.
        self.missing: list[Any] = []
        for start in spec.objectSet:
            found = find(start.obj)
            if found is None:
                self.missing.append(start.obj)
            else:
                self._visit(found, start.selectSet, skip=bool(start.skip))
        if self.missing and not spec.reportMissingObjectsInResults:
            raise not_found(self.missing[0])

    def _visit(self, first: Managed, selections: list[Any], *, skip: bool) -> None:
        waiting = [(first, selections, skip)]
        while waiting:
            managed, selections, skip = waiting.pop()
            if not skip:
                self.objects.setdefault(managed.key, managed)
                if len(self.objects) > MAX_OBJECTS:
                    raise invalid_argument("specSet")
            nexts = []
            for selection in selections:
                traversal = selection if _is_traversal(selection) else self._named.get(selection.name)
                if traversal is None:
                    raise invalid_argument("selectSet.name")
                if (managed.key, id(traversal)) in self._seen or not issubclass(managed.type, traversal.type):
                    continue
                self._seen.add((managed.key, id(traversal)))
                for child in self._follow(managed, traversal.path):
                    nexts.append((child, traversal.selectSet, bool(traversal.skip)))
            waiting.extend(reversed(nexts))

    def _follow(self, managed: Managed, path: str) -> Iterator[Managed]:
        value = paths.read(managed, path)
        if value is None:
            return
        for ref in value if isinstance(value, list) else [value]:
            if not isinstance(ref, VmomiSupport.ManagedObject):
                raise invalid_argument("selectSet.path")
            child = self._find(ref)
            if child is not None:
                yield child


def _is_traversal(selection: Any) -> bool:
    return isinstance(selection, vmodl.query.PropertyCollector.TraversalSpec)


def _all_selections(spec: Any) -> Iterator[Any]:
    waiting = [s for start in spec.objectSet for s in start.selectSet]
    count = 0
    while waiting:
        selection = waiting.pop()
        count += 1
        if count > MAX_SPECS:
            raise invalid_argument("specSet")
        yield selection
        if _is_traversal(selection):
            waiting.extend(selection.selectSet)


def validate(spec: Any) -> None:
    """Refuse a specification that no object could answer. Raises InvalidProperty, InvalidArgument."""
    if not spec.propSet:
        raise invalid_argument("specSet.propSet")
    if not spec.objectSet:
        raise invalid_argument("specSet.objectSet")
    if len(spec.propSet) > MAX_SPECS or len(spec.objectSet) > MAX_OBJECTS:
        raise invalid_argument("specSet")
    for wanted in spec.propSet:
        if wanted.type is None or not issubclass(wanted.type, VmomiSupport.ManagedObject):
            raise invalid_argument("propSet.type")
        for path in wanted.pathSet:
            paths.check(wanted.type, path)
    for selection in _all_selections(spec):
        if _is_traversal(selection):
            paths.check(selection.type, selection.path)


def wanted_paths(spec: Any, managed: Managed) -> list[str] | None:
    """The paths asked for of this object; None if its type is not asked for at all."""
    found: dict[str, None] = {}
    matched = False
    for wanted in spec.propSet:
        if not issubclass(managed.type, wanted.type):
            continue
        matched = True
        names = managed.property_names() if wanted.all else wanted.pathSet
        found.update(dict.fromkeys(str(name) for name in names))
    return list(found) if matched else None
