"""Properties of many objects in few calls: the property collector with pages.

Source: the vSphere Web Services API reference (PropertyCollector, ContainerView).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim, vmodl

from vdkit.errors import LimitExceeded, ObjectNotFound
from vdkit.vsphere.session import Session

#: Objects per page of an inventory listing.
PAGE_OBJECTS: Final = 200
#: More objects than any vCenter's documented maximum (40 000 machines) many times over.
MAX_OBJECTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One object and the properties the host gave; one that may not be read is simply missing."""

    moref: str
    kind: str
    values: dict[str, Any]

    def get(self, path: str, default: Any = None) -> Any:
        value = self.values.get(path)
        return default if value is None else value


def of_all(session: Session, kinds: Mapping[Any, Sequence[str]], what: str) -> list[Row]:
    """Properties of all the objects of the given managed types in the inventory."""

    def collect() -> list[Row]:
        content = session.content
        view = content.viewManager.CreateContainerView(content.rootFolder, list(kinds), True)
        try:
            traversal = vmodl.query.PropertyCollector.TraversalSpec(
                name="members", path="view", skip=False, type=vim.view.ContainerView
            )
            start = vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[traversal])
            return list(_pages(content.propertyCollector, kinds, [start], session.where))
        finally:
            view.DestroyView()

    return session.read(what, collect)


def of_one(session: Session, kind: Any, moref: str, paths: Sequence[str], what: str) -> Row:
    """Properties of one object. Raises ObjectNotFound."""

    def collect() -> list[Row]:
        start = vmodl.query.PropertyCollector.ObjectSpec(obj=session.managed(kind, moref), skip=False)
        return list(_pages(session.content.propertyCollector, {kind: paths}, [start], session.where))

    rows = session.read(what, collect)
    if not rows:
        raise ObjectNotFound(
            f"{session.where}: {what}: {moref} does not exist", remedy="list the machines again"
        )
    return rows[0]


def _pages(collector: Any, kinds: Mapping[Any, Sequence[str]], start: list[Any], where: str) -> Iterator[Row]:
    query = vmodl.query.PropertyCollector
    spec = query.FilterSpec(
        objectSet=start,
        propSet=[
            query.PropertySpec(type=kind, all=False, pathSet=list(paths)) for kind, paths in kinds.items()
        ],
    )
    page = collector.RetrievePropertiesEx([spec], query.RetrieveOptions(maxObjects=PAGE_OBJECTS))
    seen = 0
    while page is not None:
        seen += len(page.objects)
        if seen > MAX_OBJECTS:
            raise LimitExceeded(f"{where}: the inventory lists more than {MAX_OBJECTS} objects")
        for found in page.objects:
            yield Row(
                found.obj._GetMoId(),
                type(found.obj)._wsdlName,
                {changed.name: changed.val for changed in found.propSet},
            )
        if not page.token:
            return
        page = collector.ContinueRetrievePropertiesEx(page.token)
