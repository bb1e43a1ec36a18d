"""Property paths: ``config.hardware.device[2000].backing.fileName``.

A step is a name, with a key in brackets behind an array: an integer, or text in double quotes, compared with
the element's ``key`` (the API's rule for arrays of keyed objects). Rules: vSphere API reference.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pyVmomi import VmomiSupport

from vdkit.sim.soap.codec import typed
from vdkit.sim.soap.faults import invalid_property
from vdkit.sim.soap.objects import Managed

#: Longest path and most steps that a request may ask for.
MAX_PATH = 512
MAX_STEPS = 16
_STEP = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)(?:\[(?:"([^"\]]*)"|(-?\d{1,18}))\])?(?:\.|$)')


class Step(NamedTuple):
    name: str
    #: None where there are no brackets.
    key: str | int | None


def parse(path: str) -> list[Step]:
    """The steps of a path. Raises the API's InvalidProperty."""
    steps: list[Step] = []
    position = 0
    while position < len(path):
        found = _STEP.match(path, position)
        if found is None or len(path) > MAX_PATH or len(steps) == MAX_STEPS:
            raise invalid_property(path)
        name, text, number = found.groups()
        steps.append(Step(name, text if text is not None else int(number) if number else None))
        position = found.end()
    if not steps or path.endswith("."):
        raise invalid_property(path)
    return steps


def check(kind: Any, path: str) -> None:
    """Refuse a path that objects of pyVmomi type ``kind`` cannot have. Raises InvalidProperty."""
    owner = kind
    for step in parse(path):
        if owner is None or not issubclass(owner, VmomiSupport.DataObject | VmomiSupport.ManagedObject):
            raise invalid_property(path)
        try:
            declared = owner._GetPropertyInfo(step.name).type
        except AttributeError:
            raise invalid_property(path) from None
        is_array = issubclass(declared, list)
        if step.key is not None and not is_array:
            raise invalid_property(path)
        if step.key is not None:
            # What an element may hold depends on its own type (a device's backing): not known here.
            return
        owner = None if is_array else declared


def read(managed: Managed, path: str) -> Any:
    """The value at a path in its declared type; None where anything on the way is unset."""
    steps = parse(path)
    value = managed.read(steps[0].name)
    value = _element(value, steps[0].key)
    for step in steps[1:]:
        if value is None:
            return None
        if not isinstance(value, VmomiSupport.DataObject):
            raise invalid_property(path)
        try:
            declared = value._GetPropertyInfo(step.name).type
        except AttributeError:
            raise invalid_property(path) from None
        value = typed(declared, getattr(value, step.name))
        value = _element(value, step.key)
    return value


def _element(value: Any, key: str | int | None) -> Any:
    if key is None or value is None:
        return value
    for element in value:
        if getattr(element, "key", None) == key:
            return element
    return None
