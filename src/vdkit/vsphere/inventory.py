"""Finding virtual machines by what people call them.

Source: the vSphere Web Services API reference (ManagedEntity, Folder, VirtualMachine).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pyVmomi import vim

from vdkit.errors import Ambiguous, ObjectNotFound, UsageError
from vdkit.vsphere.hardware import MACHINE_PROPERTIES, machine, plain_name
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import Row, of_all, of_one
from vdkit.vsphere.session import Session

#: How many near names or candidates a message lists.
SHOWN: Final = 5
#: Folders nested in each other; a bound against loops in what a server says.
MAX_DEPTH: Final = 256

_IDENTITY: Final = ("name", "parent", "parentVApp", "config.instanceUuid", "config.uuid")
_FOLDERS: Final = {
    vim.Folder: ("name", "parent"),
    vim.Datacenter: ("name", "parent"),
    vim.VirtualApp: ("name", "parentFolder"),
}


def list_machines(session: Session) -> list[VirtualMachine]:
    """All the virtual machines, sorted by inventory path."""
    return _listed(session, MACHINE_PROPERTIES)


def get_machine(session: Session, moref: str) -> VirtualMachine:
    """The machine of an id such as ``vm-16`` (vCenter) or ``2`` (ESXi). Raises ObjectNotFound."""
    row = of_one(session, vim.VirtualMachine, moref, MACHINE_PROPERTIES, f"look at machine {moref}")
    folders = {row.moref: row for row in of_all(session, dict(_FOLDERS), "list the folders")}
    return machine(row, _path(row, folders))


def _look(session: Session, moref: str, path: str) -> VirtualMachine:
    row = of_one(session, vim.VirtualMachine, moref, MACHINE_PROPERTIES, f"look at machine {moref}")
    return machine(row, path)


def _listed(session: Session, properties: Sequence[str]) -> list[VirtualMachine]:
    """All the machines, described by those properties only."""
    rows = of_all(session, {vim.VirtualMachine: properties, **_FOLDERS}, "list the machines")
    folders = {row.moref: row for row in rows if row.kind != "VirtualMachine"}
    found = [machine(row, _path(row, folders)) for row in rows if row.kind == "VirtualMachine"]
    return sorted(found, key=lambda vm: (vm.path, vm.moref))


def find_machine(session: Session, text: str) -> VirtualMachine:
    """The one machine that ``text`` means.

    ``text`` is a name, an inventory path (``/DC/vm/web`` or its end, ``folder/web``), an id (``vm-16``,
    ``moref=vm-16``) or a UUID (of the instance or of the BIOS; ``uuid=`` in front is allowed). A name wins
    over an id that looks the same. Raises ObjectNotFound with near names, Ambiguous with the ids.
    """
    kind, _, value = text.partition("=")
    if not value.strip() and kind in ("moref", "uuid", "name"):
        raise UsageError(f"{text!r} names no machine")
    if kind == "moref":
        return get_machine(session, value)
    # What tells machines apart is a hundredth of their configurations, and inventories are large.
    machines = _listed(session, _IDENTITY)
    for matches in _ways(kind, value, text):
        found = [vm for vm in machines if matches(vm)]
        if len(found) == 1:
            return _look(session, found[0].moref, found[0].path)
        if found:
            raise _ambiguous(session, text, found)
    raise _not_found(session, value if kind in ("uuid", "name") else text, machines)


def _ways(kind: str, value: str, text: str) -> Sequence[Callable[[VirtualMachine], bool]]:
    """Tests in the order of their strength."""

    def by_uuid(wanted: str) -> Callable[[VirtualMachine], bool]:
        return lambda vm: wanted.lower() in {(vm.instance_uuid or "").lower(), (vm.bios_uuid or "").lower()}

    if kind == "uuid" and value:
        return (by_uuid(value),)
    if kind == "name" and value:
        return (lambda vm: vm.name == value,)
    ways: list[Callable[[VirtualMachine], bool]] = [lambda vm: vm.name == text]
    if "/" in text:
        tail = "/" + text.strip("/")
        ways.append(lambda vm: vm.path == tail)
        if not text.startswith("/"):
            ways.append(lambda vm: vm.path.endswith(tail))
    ways.append(lambda vm: vm.moref == text)
    if text:
        ways.append(by_uuid(text))
    return ways


def _path(row: Row, folders: dict[str, Row]) -> str:
    names = [row.get("name", "")]
    above = row.get("parent") or row.get("parentVApp")
    for _ in range(MAX_DEPTH):
        # The root folder is not part of its own view, nor of a path.
        found = folders.get(above._GetMoId()) if above is not None else None
        if found is None:
            break
        names.append(found.get("name", ""))
        above = found.get("parent") or found.get("parentFolder")
    return "/" + "/".join(reversed(names))


def _ambiguous(session: Session, text: str, found: list[VirtualMachine]) -> Ambiguous:
    listed = ", ".join(f"moref={vm.moref} ({vm.path})" for vm in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Ambiguous(
        f"{session.where}: {len(found)} machines are called {text!r}: {listed}{more}",
        remedy="name one by its moref or its inventory path",
    )


def _not_found(session: Session, text: str, machines: Iterable[VirtualMachine]) -> ObjectNotFound:
    names = {vm.name for vm in machines}
    folded = {name.casefold(): name for name in sorted(names)}
    last = plain_name(text.rsplit("/", 1)[-1]).casefold()
    near = [folded[name] for name in difflib.get_close_matches(last, folded, n=SHOWN, cutoff=0.5)]
    if near:
        remedy = f"near names: {', '.join(near)}"
    elif names:
        remedy = f"the host knows {len(names)} machines, none with a name near it; `vdkit vms` lists them"
    else:
        remedy = "the account sees no machine at all: check its role and the host"
    return ObjectNotFound(f"{session.where}: there is no machine {text!r}", remedy=remedy)
