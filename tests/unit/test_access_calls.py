"""The unpublished calls as they go over the wire, and access to a host of a few dictionaries."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pyVmomi import VmomiSupport, vim, vmodl

from vdkit.errors import NotSupported, ObjectBusy
from vdkit.net.trust import Trust
from vdkit.vsphere import access, tasks
from vdkit.vsphere.session import About
from vdkit.vsphere.stub import VerifiedStub
from vdkit.wire.vim import internal
from vsphere_fakes import FakeStub, fake_machine, fake_session

CENTER = About("VMware vCenter Server 8.0.3", "VirtualCenter", "8.0.3.0", "8.0.3", "1", "uuid")


def serialized(name: str, arguments: list[Any]) -> str:
    internal.register()
    stub = VerifiedStub("vc.example", 443, Trust(sha256="AA:" * 31 + "AA"), timeout=1.0)
    info = VmomiSupport.GetWsdlMethod("urn:vim25", name).info
    manager = vim.AuthorizationManager("AuthorizationManager", stub)
    text = stub.SerializeRequest(manager, info, arguments).decode()
    body = text.split("<soapenv:Body>", 1)[1].split("</soapenv:Body>", 1)[0]
    # pyVmomi marks some fields with the version that it speaks.
    return re.sub(r' versionId="[\d.]+"', "", body)


def test_disabling_is_written_as_govmomi_writes_it() -> None:
    internal.register()
    request = VmomiSupport.GetWsdlType("urn:vim25", "DisabledMethodRequest")
    wanted = [request(method="RelocateVM_Task", reasonId="")]
    text = serialized("DisableMethods", [[vim.VirtualMachine("vm-16")], wanted, "vdkit a&b", False])
    this = '<_this type="AuthorizationManager">AuthorizationManager</_this>'
    assert text == (
        f'<DisableMethods xmlns="urn:internalvim25">{this}<entity type="VirtualMachine">vm-16</entity>'
        "<method><method>RelocateVM_Task</method><reasonId></reasonId></method>"
        "<sourceId>vdkit a&amp;b</sourceId><sessionScope>false</sessionScope></DisableMethods>"
    )


def test_enabling_is_written_as_govmomi_writes_it() -> None:
    text = serialized("EnableMethods", [[vim.VirtualMachine("vm-16")], ["RelocateVM_Task"], "vdkit"])
    this = '<_this type="AuthorizationManager">AuthorizationManager</_this>'
    assert text == (
        f'<EnableMethods xmlns="urn:internalvim25">{this}<entity type="VirtualMachine">vm-16</entity>'
        "<method>RelocateVM_Task</method><sourceId>vdkit</sourceId></EnableMethods>"
    )


def test_other_calls_keep_their_namespace() -> None:
    assert serialized("RetrieveAllPermissions", []).startswith('<RetrieveAllPermissions xmlns="urn:vim25">')


class Center(FakeStub):
    """A vCenter that lets every call through, and remembers who disabled what."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[str] = []
        self.objects = {"7": {"recentTask": None}}
        self.methods["DisableMethods"] = lambda _moref, _entity, _method, source, _scope: self.held.append(
            source
        )
        self.methods["EnableMethods"] = lambda _moref, _entity, _method, source: self.held.remove(source)

    def run_task(self, act: str, state: str = "running") -> None:
        self.objects["7"]["recentTask"] = vim.Task.Array([vim.Task("task-1", self)])
        self.objects["task-1"] = {"info.state": state, "info.descriptionId": act}


def session_with(stub: Center) -> Any:
    session = fake_session(stub, about=CENTER)
    session._content.authorizationManager = vim.AuthorizationManager("AuthorizationManager", stub)
    return session


@pytest.mark.parametrize(
    "act",
    ["VirtualMachine.relocate", "Drm.ExecuteRelocateLRO", "vim.VirtualMachine.relocate", "x.StorageVMotion"],
)
@pytest.mark.parametrize("state", ["queued", "running"])
def test_whatever_moves_the_disks_makes_it_busy(act: str, state: str) -> None:
    stub = Center()
    stub.run_task(act, state)
    with pytest.raises(ObjectBusy, match="task-1 is moving it"):
        access.prepare_for_access(session_with(stub), fake_machine(), "vdkit")
    assert stub.held == []
    assert "DisableMethods" not in stub.calls


@pytest.mark.parametrize(
    ("act", "state"),
    [
        ("VirtualMachine.migrate", "running"),  # to another host, its files stay
        ("VirtualMachine.createSnapshot", "running"),
        ("VirtualMachine.relocate", "success"),
        ("VirtualMachine.relocate", "error"),
    ],
)
def test_other_tasks_and_those_that_have_ended_do_not(act: str, state: str) -> None:
    stub = Center()
    stub.run_task(act, state)
    access.prepare_for_access(session_with(stub), fake_machine(), "vdkit")
    assert stub.held == ["vdkit"]


def test_a_relocation_that_the_server_let_begin_is_noticed_and_undone() -> None:
    stub = Center()
    disable = stub.methods["DisableMethods"]

    def raced(*arguments: Any) -> None:
        disable(*arguments)
        stub.run_task("VirtualMachine.relocate")

    stub.methods["DisableMethods"] = raced
    with pytest.raises(ObjectBusy):
        access.prepare_for_access(session_with(stub), fake_machine(), "vdkit")
    assert stub.held == []
    assert stub.calls.count("EnableMethods") == 1


@pytest.mark.parametrize(
    "fault",
    [
        vmodl.fault.InvalidRequest(msg="Unable to resolve WSDL method name"),
        vmodl.fault.MethodNotFound(msg="no"),
    ],
)
def test_a_server_that_has_no_such_call_is_not_supported(fault: Any) -> None:
    stub = Center()

    def unknown(*_: Any) -> None:
        raise fault

    stub.methods["DisableMethods"] = unknown
    with pytest.raises(NotSupported):
        access.prepare_for_access(session_with(stub), fake_machine(), "vdkit")
    assert "EnableMethods" not in stub.calls


def test_a_server_without_the_manager_is_not_supported() -> None:
    with pytest.raises(NotSupported, match="AuthorizationManager"):
        access.end_access(fake_session(Center(), about=CENTER), fake_machine(), "vdkit")


@pytest.mark.parametrize("form", ["name", "method", "unknown"])
def test_a_disabled_method_is_known_in_each_form_that_pyvmomi_gives(form: str) -> None:
    stub = Center()
    given = {
        "name": "RelocateVM_Task",
        "method": VmomiSupport.GetWsdlMethod("urn:vim25", "RelocateVM_Task"),
        "unknown": VmomiSupport.UnknownManagedMethod("RelocateVM_Task"),
    }[form]
    session, vm = session_with(stub), fake_machine()
    for listed, answer in (([given], True), ([], False)):
        row = access.Row("7", "VirtualMachine", {"disabledMethod": listed})
        assert access._is_disabled(row) is answer
    stub.objects["7"]["disabledMethod"] = None
    assert not access.is_relocation_disabled(session, vm)
    assert tasks.running(session, vm) == []
