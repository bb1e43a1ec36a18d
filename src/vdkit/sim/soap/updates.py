"""What a client of ``WaitForUpdatesEx`` has been told, and what is new since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyVmomi import VmomiSupport, vmodl

PC = vmodl.query.PropertyCollector
Key = tuple[str, str]


class Question(Protocol):
    """A filter: its id and its reference."""

    moid: str

    @property
    def ref(self) -> Any: ...


@dataclass
class ObjectState:
    """One object of an answer: set values by path, and what could not be read."""

    ref: Any
    values: dict[str, Any]
    missing: list[Any]


@dataclass
class Answer:
    """What a filter selects now."""

    objects: dict[Key, ObjectState] = field(default_factory=dict)


#: By filter, by object: the printed values by path. Data objects have no equality; their text does.
_Told = dict[str, dict[Key, dict[str, str]]]


def _printed(value: Any) -> str:
    return f"{type(value).__name__}:{value}"


class Reported:
    """Versions are counted; the last one and the one before can be asked from.

    A client whose connection broke while the reply was on its way asks again with the version before, and
    must be told the same things again.
    """

    def __init__(self) -> None:
        self._version = 0
        self._told: _Told = {}
        self._before: _Told = {}

    def resume(self, version: str | None) -> None:
        """Set off from the version that the client has. Raises InvalidCollectorVersion for others."""
        if not version:
            self._told, self._before = {}, {}
        elif version == str(self._version):
            self._before = self._told
        elif self._version > 1 and version == str(self._version - 1):
            self._told = self._before
        else:
            raise vmodl.query.InvalidCollectorVersion(
                msg=f"A specified version of the collector was not correct: {version}"
            )

    def collect(self, filters: Sequence[Any], answer: Callable[[Any], Answer], limit: int | None) -> Any:
        """An ``UpdateSet`` of what is new, at most ``limit`` objects; None if nothing is."""
        told: _Told = {moid: dict(objects) for moid, objects in self._told.items()}
        room = limit if limit is not None else 1 << 60
        found = []
        truncated = False
        for moid in told.keys() - {one.moid for one in filters}:
            del told[moid]
        for one in filters:
            known = told.setdefault(one.moid, {})
            news = list(_changes(known, answer(one)))
            truncated = truncated or len(news) > room
            objects = []
            for key, update, state in news[:room]:
                objects.append(update)
                if state is None:
                    del known[key]
                else:
                    known[key] = {path: _printed(value) for path, value in state.values.items()}
            room -= len(objects)
            if objects:
                found.append(PC.FilterUpdate(filter=one.ref, objectSet=objects))
        if not found:
            return None
        self._version += 1
        self._told = told
        return PC.UpdateSet(version=str(self._version), filterSet=found, truncated=truncated)


def _changes(known: dict[Key, dict[str, str]], answer: Answer) -> Any:
    """``(key, ObjectUpdate, state or None)`` for every object that entered, changed or left."""
    for key, state in answer.objects.items():
        before = known.get(key)
        if before is None:
            changes = [_assign(path, value) for path, value in state.values.items()]
            yield key, _update("enter", state.ref, changes, state.missing), state
            continue
        changes = [
            _assign(path, value)
            for path, value in state.values.items()
            if before.get(path) != _printed(value)
        ]
        changes += [PC.Change(name=path, op="assign") for path in before.keys() - state.values.keys()]
        if changes:
            yield key, _update("modify", state.ref, changes, state.missing), state
    for key in list(known.keys() - answer.objects.keys()):
        kind, moid = key
        yield key, _update("leave", VmomiSupport.GetWsdlType("urn:vim25", kind)(moid), [], []), None


def _assign(path: str, value: Any) -> Any:
    return PC.Change(name=path, op="assign", val=value)


def _update(kind: str, ref: Any, changes: list[Any], missing: list[Any]) -> Any:
    return PC.ObjectUpdate(kind=kind, obj=ref, changeSet=changes, missingSet=missing)
