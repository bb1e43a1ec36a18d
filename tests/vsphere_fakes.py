"""A host of a few dictionaries behind pyVmomi's stub, for tests of single decisions of the control plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from vdkit.net.secret import Secret
from vdkit.vsphere.model import Power, VirtualMachine
from vdkit.vsphere.session import About, Session

Answer = Any


class FakeStub:
    """``objects``: properties by moref. ``methods``: by WSDL name, called with moref and arguments."""

    version = "vim.version.version9"
    versionId = "urn:vim25/5.5"  # noqa: N815  pyVmomi's name

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.methods: dict[str, Callable[..., Answer]] = {"RetrievePropertiesEx": self._retrieve}
        self.calls: list[str] = []
        self.dropped = 0

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outer: Any = None) -> Answer:  # noqa: N802
        self.calls.append(info.wsdlName)
        return self.methods[info.wsdlName](mo._GetMoId(), *args)

    def InvokeAccessor(self, mo: Any, info: Any) -> Answer:  # noqa: N802
        return self.objects[mo._GetMoId()][info.name]

    def for_login(self) -> FakeStub:
        return self

    def use_session(self, session_id: str | None) -> None:
        pass

    def DropConnections(self) -> None:  # noqa: N802
        self.dropped += 1

    def GetSessionId(self) -> str:  # noqa: N802
        return "cookie"

    def _retrieve(self, moref: str, specs: list[Any], options: Any) -> Answer:
        query = vmodl.query.PropertyCollector
        found = []
        for wanted in specs[0].objectSet:
            values = self.objects.get(wanted.obj._GetMoId())
            if values is None:
                raise vmodl.fault.ManagedObjectNotFound(obj=wanted.obj, msg="gone")
            pairs = [
                vmodl.DynamicProperty(name=path, val=values[path])
                for path in specs[0].propSet[0].pathSet
                if values.get(path) is not None
            ]
            found.append(query.ObjectContent(obj=wanted.obj, propSet=pairs))
        return query.RetrieveResult(objects=found)


def fake_session(stub: FakeStub, *, about: About | None = None) -> Session:
    """A logged-in session over the fake; it never sleeps."""
    acting: Any = stub
    session = Session(acting, "esx.example", 443, "backup", Secret("canary-&<>"), sleep=lambda _: None)
    session._content = vim.ServiceInstanceContent(
        rootFolder=vim.Folder("root", stub),
        propertyCollector=vmodl.query.PropertyCollector("collector", stub),
        viewManager=vim.view.ViewManager("views", stub),
        sessionManager=vim.SessionManager("sessions", stub),
        about=vim.AboutInfo(),
    )
    session._about = about or About("VMware ESXi 8.0.3", "HostAgent", "8.0.3.0", "8.0.3", "24022510", None)
    session._generation = 1
    return session


def fake_machine(**changes: Any) -> VirtualMachine:
    fields: dict[str, Any] = {"moref": "7", "name": "web", "path": "/DC/vm/web", "power": Power.ON, **changes}
    return VirtualMachine(**fields)


def disk_device(
    key: int = 2000,
    capacity: int = 1 << 30,
    change_id: str | None = None,
    *,
    kind: Any = None,
    **backing: Any,
) -> Any:
    """A VirtualDisk as a configuration holds it."""
    made = (kind or vim.vm.device.VirtualDisk.FlatVer2BackingInfo)(
        fileName=f"[ds] web/disk-{key}.vmdk", diskMode=backing.pop("diskMode", "persistent"), **backing
    )
    if change_id is not None:
        made.changeId = change_id
    return vim.vm.device.VirtualDisk(
        key=key,
        capacityInBytes=capacity,
        capacityInKB=capacity >> 10,
        backing=made,
        deviceInfo=vim.Description(label=f"Hard disk {key - 1999}", summary=""),
    )


def devices(*found: Any) -> Any:
    """As the property ``config.hardware.device`` carries them."""
    return vim.vm.device.VirtualDevice.Array(list(found))
