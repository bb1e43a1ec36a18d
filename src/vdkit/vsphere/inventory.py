"""Finding virtual machines by what people call them.

Source: the vSphere Web Services API reference (ManagedEntity, Folder, VirtualMachine, SearchIndex), and the
published VDDK programming guide for the forms of ``vmxSpec``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import unquote

from pyVmomi import vim

from vdkit.errors import Ambiguous, ObjectNotFound, UsageError
from vdkit.vsphere.hardware import MACHINE_PROPERTIES, disks, machine, plain_name
from vdkit.vsphere.model import Snapshot, VirtualMachine
from vdkit.vsphere.properties import Row, of_all, of_one
from vdkit.vsphere.session import Session

#: How many near names or candidates a message lists.
SHOWN: Final = 5
#: Folders nested in each other; a bound against loops in what a server says.
MAX_DEPTH: Final = 256

#: ``<path to .vmx>?dcPath=<datacenter>&dsName=<datastore>``, as VixDiskLib takes it; the order is free.
_VMX_SPEC: Final = re.compile(
    r"(?s)(?P<path>.+\.(?:vmx|vmtx))\?(?P<query>(?:dcPath|dsName)=.*)", re.IGNORECASE
)
_DATASTORE_PATH: Final = re.compile(r"(?s)\[(?P<store>[^\[\]]+)\] ?(?P<path>.+\.(?:vmx|vmtx))", re.IGNORECASE)
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


@dataclass(frozen=True, slots=True)
class VmxPath:
    """A machine by its configuration file. Without a datacenter all of them are looked through."""

    path: str
    datastore: str
    datacenter: str | None = None

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}"


def parse_vmx_path(text: str) -> VmxPath | None:
    """The machine that a path to a ``.vmx`` file means; None if the text is not of that form.

    ``web/web.vmx?dcPath=DC&dsName=store`` (with %-escapes), or ``[store] web/web.vmx``. Raises UsageError.
    """
    plain = _DATASTORE_PATH.fullmatch(text)
    if plain is not None:
        return VmxPath(plain["path"].lstrip("/"), plain["store"])
    spec = _VMX_SPEC.fullmatch(text)
    if spec is None:
        return None
    given: dict[str, str] = {}
    for item in spec["query"].split("&"):
        name, equals, value = item.partition("=")
        key = {"dcpath": "dcPath", "dsname": "dsName"}.get(name.lower())
        if key is None or not equals or key in given:
            raise UsageError(f"{text!r}: {item!r} is not dcPath=... or dsName=..., each once")
        given[key] = unquote(value)
    if not given.get("dsName"):
        raise UsageError(f"{text!r} names no datastore", remedy="write PATH.vmx?dcPath=...&dsName=...")
    return VmxPath(unquote(spec["path"]).lstrip("/"), given["dsName"], given.get("dcPath") or None)


def _by_vmx_path(session: Session, spec: VmxPath) -> VirtualMachine:
    what = f"find the machine of {spec}"
    index = session.content.searchIndex
    if spec.datacenter is None:
        rows = of_all(session, {vim.Datacenter: ("name",)}, "list the datacenters")
        centres = [session.managed(vim.Datacenter, row.moref) for row in rows]
    else:
        path = spec.datacenter.strip("/")
        found = session.read(what, lambda: index.FindByInventoryPath(path))
        if not isinstance(found, vim.Datacenter):
            raise ObjectNotFound(
                f"{session.where}: {what}: there is no datacenter {spec.datacenter!r}",
                remedy="write its inventory path: its name, with the folders it is in",
            )
        centres = [found]
    asked = [session.read(what, partial(index.FindByDatastorePath, centre, str(spec))) for centre in centres]
    hits = [hit._GetMoId() for hit in asked if hit is not None]
    if len(hits) > 1:
        raise Ambiguous(
            f"{session.where}: {what}: there is one in {len(hits)} datacenters: {', '.join(hits)}",
            remedy="say which: PATH.vmx?dcPath=...&dsName=...",
        )
    if not hits:
        raise ObjectNotFound(
            f"{session.where}: no machine is registered with {spec}",
            remedy="check datastore, folder and file; names are compared letter by letter",
        )
    return get_machine(session, hits[0])


def find_snapshot(session: Session, vm: VirtualMachine, text: str) -> Snapshot:
    """The one snapshot of a machine that ``text`` means: an id (``snapshot-47``), or a name.

    Raises ObjectNotFound with those that there are, Ambiguous.
    """
    everyone = list(vm.all_snapshots())
    wanted = text.strip().removeprefix("moref=")
    found = [one for one in everyone if one.moref == wanted] or [
        one for one in everyone if one.name == wanted
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{one.moref} ({one.name})" for one in (found or everyone)[: 2 * SHOWN])
    if found:
        raise Ambiguous(
            f"{session.where}: {vm.name} ({vm.moref}) has {len(found)} snapshots called {text!r}: {listed}",
            remedy="name it by its id",
        )
    raise ObjectNotFound(
        f"{session.where}: {vm.name} ({vm.moref}) has no snapshot {text!r}",
        remedy=f"it has {listed}" if listed else "it has none: make one first",
    )


def at_snapshot(session: Session, vm: VirtualMachine, text: str) -> VirtualMachine:
    """The machine with the disks that the snapshot ``text`` froze, not those that run. As
    :func:`find_snapshot`.
    """
    snapshot = find_snapshot(session, vm, text)
    paths = ("config.hardware.device", "config.changeTrackingEnabled")
    row = of_one(
        session,
        vim.vm.Snapshot,
        snapshot.moref,
        paths,
        f"read the configuration of snapshot {snapshot.name!r} ({snapshot.moref}) of {vm.name}",
    )
    frozen = disks(
        row.get("config.hardware.device", ()),
        enabled=bool(row.get("config.changeTrackingEnabled", False)),
        supported=vm.change_tracking_supported,
    )
    return replace(vm, disks=tuple(frozen))


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
    ``moref=vm-16``), a UUID (of the instance or of the BIOS; ``uuid=`` in front is allowed), or the path of
    its configuration file (see :func:`parse_vmx_path`). A name wins over an id that looks the same. Raises
    ObjectNotFound with near names, Ambiguous with the ids.
    """
    spec = parse_vmx_path(text)
    if spec is not None:
        return _by_vmx_path(session, spec)
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
