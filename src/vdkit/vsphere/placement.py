"""Where a machine runs and may run, what its disks lie on, and the state of the server: read for a diagnosis.

Source: the vSphere Web Services API reference (HostSystem, ComputeResource, Datastore, SessionManager,
LicenseManager).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import VixError
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import Row, of_all, of_one
from vdkit.vsphere.session import DEFAULT_PORT, Session

#: Hosts of one cluster; vSphere's own limit is 96.
MAX_HOSTS: Final = 512
#: Sessions that are counted.
MAX_SESSIONS: Final = 100_000

_HOST: Final = ("name", "parent", "datastore", "runtime", "summary.config")
_DATASTORE: Final = ("name", "summary")


@dataclass(frozen=True, slots=True)
class EsxHost:
    """A host that runs the machine, or may. ``address`` and ``port`` are where it is managed."""

    moref: str
    name: str
    address: str
    port: int
    thumbprint: str | None
    """SHA-1 of its certificate, as vCenter knows it."""
    version: str
    build: str
    connected: bool
    maintenance: bool
    runs_it: bool


@dataclass(frozen=True, slots=True)
class DatastoreFacts:
    """``kind`` is the API's type: ``VMFS``, ``NFS``, ``NFS41``, ``vsan``, ``VVOL``."""

    moref: str
    name: str
    kind: str
    accessible: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """``hosts`` begins with the one that runs the machine, or ran it last."""

    hosts: tuple[EsxHost, ...]
    datastores: tuple[DatastoreFacts, ...]
    folder: str | None
    pool: str | None
    usable: bool
    """False for a machine that is orphaned, inaccessible or whose host is gone."""
    tools_running: bool

    def datastore(self, name: str) -> DatastoreFacts | None:
        return next((one for one in self.datastores if one.name == name), None)


@dataclass(frozen=True, slots=True)
class SessionCount:
    """Sessions of the server, in all and of this account."""

    total: int
    own: int


def placement(session: Session, vm: VirtualMachine) -> Placement:
    """Raises ObjectNotFound, NoPrivilege and what a call raises."""
    what = f"look where {vm.name} is"
    paths = (
        "datastore",
        "guest.toolsRunningStatus",
        "parent",
        "resourcePool",
        "runtime.connectionState",
        "runtime.host",
    )
    row = of_one(session, vim.VirtualMachine, vm.moref, paths, what)
    stores = {one._GetMoId() for one in row.get("datastore", ())}
    kinds: dict[Any, tuple[str, ...]] = {vim.HostSystem: _HOST, vim.Datastore: _DATASTORE}
    rows = of_all(session, kinds, what)
    home = row.get("runtime.host")
    return Placement(
        hosts=_hosts(session, rows, home._GetMoId() if home is not None else None, stores),
        datastores=tuple(_datastore(one) for one in rows if one.moref in stores),
        folder=_moref(row.get("parent")),
        pool=_moref(row.get("resourcePool")),
        usable=str(row.get("runtime.connectionState", "connected")) == "connected",
        tools_running=str(row.get("guest.toolsRunningStatus")) == "guestToolsRunning",
    )


def server_time(session: Session) -> datetime:
    """What the server's clock says, in UTC."""
    service = vim.ServiceInstance("ServiceInstance", session.stub)
    now: datetime = session.read("ask for the time", service.CurrentTime)
    return now.astimezone(UTC) if now.tzinfo is not None else now.replace(tzinfo=UTC)


def count_sessions(session: Session) -> SessionCount | None:
    """None where the account may not see the others."""
    manager = session.content.sessionManager
    paths = ("sessionList", "currentSession")
    row = of_one(session, vim.SessionManager, manager._GetMoId(), paths, "count the sessions")
    listed, own = row.get("sessionList"), row.get("currentSession")
    if listed is None or own is None or len(listed) > MAX_SESSIONS:
        return None
    return SessionCount(len(listed), sum(1 for one in listed if one.userName == own.userName))


def is_free_licence(session: Session) -> bool | None:
    """True for the ESXi licence that lets programs only read; None where the server does not tell."""
    manager = getattr(session.content, "licenseManager", None)
    if manager is None or session.about.is_vcenter:
        return None
    try:
        row = of_one(session, vim.LicenseManager, manager._GetMoId(), ("licenses",), "look at the licence")
    except VixError:
        return None
    licences = row.get("licenses")
    if not licences:
        return None
    return any((one.editionKey or "") == "esxBasic" for one in licences)


def _moref(reference: Any) -> str | None:
    return None if reference is None else str(reference._GetMoId())


def _hosts(session: Session, rows: list[Row], home: str | None, stores: set[str]) -> tuple[EsxHost, ...]:
    """The machine's host, and those beside it that see all of its datastores."""
    hosts = {row.moref: row for row in rows if row.kind == "HostSystem"}
    if home is None or home not in hosts:
        return ()
    cluster = _moref(hosts[home].get("parent"))
    able = [
        row
        for row in hosts.values()
        if row.moref != home
        and cluster is not None
        and _moref(row.get("parent")) == cluster
        and stores <= {one._GetMoId() for one in row.get("datastore", ())}
    ]
    able.sort(key=lambda row: str(row.get("name")))
    return tuple(_host(session, row, home) for row in [hosts[home], *able][:MAX_HOSTS])


def _host(session: Session, row: Row, home: str) -> EsxHost:
    config, runtime = row.get("summary.config"), row.get("runtime")
    product = getattr(config, "product", None)
    name = str(row.get("name", row.moref))
    alone = not session.about.is_vcenter
    return EsxHost(
        moref=row.moref,
        name=name,
        # A host that is asked directly may have a name that only it knows.
        address=session.host if alone else name,
        # The port of the summary is no help: vCenters are seen to say 902 there.
        port=session.port if alone else DEFAULT_PORT,
        thumbprint=getattr(config, "sslThumbprint", None) or None,
        version=getattr(product, "version", None) or "",
        build=getattr(product, "build", None) or "",
        connected=str(getattr(runtime, "connectionState", "connected")) == "connected",
        maintenance=bool(getattr(runtime, "inMaintenanceMode", False)),
        runs_it=row.moref == home,
    )


def _datastore(row: Row) -> DatastoreFacts:
    summary = row.get("summary")
    return DatastoreFacts(
        moref=row.moref,
        name=str(row.get("name", row.moref)),
        kind=str(getattr(summary, "type", None) or ""),
        accessible=bool(getattr(summary, "accessible", True)),
    )
