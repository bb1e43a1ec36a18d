"""The codec: what clients send is understood or refused, what is sent agrees with pyVmomi's reader."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import VmomiSupport, vim, vmodl
from pyVmomi.SoapAdapter import SoapResponseDeserializer
from simclients import envelope

from vdkit.sim.soap import codec
from vdkit.sim.soap.dispatch import reply_version, service_versions
from vdkit.sim.soap.world import fault_named

V8 = "vim.version.v8_0_3_0"


class Stub:
    """What pyVmomi's reader of replies asks of a stub."""

    version = V8


def read_back(body: bytes, kind: Any) -> Any:
    return SoapResponseDeserializer(Stub()).Deserialize(body, kind)


def test_a_list_parameter_does_not_swallow_what_follows() -> None:
    body = envelope(
        '<RetrievePropertiesEx xmlns="urn:vim25"><_this type="PropertyCollector">pc</_this>'
        "<specSet><propSet><type>VirtualMachine</type><pathSet>name</pathSet><pathSet>config</pathSet></propSet>"
        '<objectSet><obj type="Folder">f</obj><selectSet xsi:type="TraversalSpec"><type>Folder</type>'
        "<path>childEntity</path></selectSet></objectSet></specSet>"
        "<specSet><propSet><type>Folder</type></propSet></specSet>"
        "<options><maxObjects>3</maxObjects></options></RetrievePropertiesEx>"
    )
    request = codec.parse_request(body)
    assert request.name == "RetrievePropertiesEx"
    assert request.target == vmodl.query.PropertyCollector("pc")
    assert [len(spec.propSet) for spec in request.arguments.specSet] == [1, 1]
    assert list(request.arguments.specSet[0].propSet[0].pathSet) == ["name", "config"]
    assert request.arguments.specSet[0].objectSet[0].selectSet[0].path == "childEntity"
    assert request.arguments.options.maxObjects == 3


def test_a_call_of_another_namespace_is_found() -> None:
    body = envelope(
        '<RetrieveServiceContent xmlns="urn:internalvim25">'
        '<_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent>'
    )
    assert codec.parse_request(body).name == "RetrieveServiceContent"


def test_a_header_and_prefixes_are_no_obstacle() -> None:
    body = (
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:v="urn:vim25">'
        b"<s:Header><operationID>17</operationID></s:Header><s:Body><v:CurrentTime>"
        b'<v:_this type="ServiceInstance">ServiceInstance</v:_this></v:CurrentTime></s:Body></s:Envelope>'
    )
    assert codec.parse_request(body).target == vim.ServiceInstance("ServiceInstance")


BAD = {
    "nothing": b"",
    "no xml": b"GET / HTTP/1.1",
    "cut": envelope("<CurrentTime xmlns='urn:vim25'>")[:-20],
    "another document": b"<html><body/></html>",
    "empty body": envelope(""),
    "no this": envelope('<CurrentTime xmlns="urn:vim25"/>'),
    "unknown parameter": envelope(
        '<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">x</_this><a>1</a></CurrentTime>'
    ),
    "unknown type": envelope('<CurrentTime xmlns="urn:vim25"><_this type="Nothing">x</_this></CurrentTime>'),
    "this without type": envelope('<CurrentTime xmlns="urn:vim25"><_this>x</_this></CurrentTime>'),
    "two calls": envelope(
        '<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">x</_this></CurrentTime>'
        '<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">x</_this></CurrentTime>'
    ),
    "a number that is none": envelope(
        '<QueryChangedDiskAreas xmlns="urn:vim25"><_this type="VirtualMachine">x</_this>'
        "<deviceKey>two</deviceKey></QueryChangedDiskAreas>"
    ),
    "entities": (
        b'<!DOCTYPE a [<!ENTITY b "c">]><soapenv:Envelope '
        b'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">&b;</soapenv:Envelope>'
    ),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(codec.BadRequest) as caught:
        codec.parse_request(body)
    assert "\n" not in caught.value.reason


def test_elements_in_elements_are_bounded() -> None:
    inner = "<a>" * 100 + "</a>" * 100
    body = envelope("").replace(
        b"<soapenv:Body>", f"<soapenv:Header>{inner}</soapenv:Header><soapenv:Body>".encode()
    )
    with pytest.raises(codec.BadRequest, match="nested"):
        codec.parse_request(body)


def test_an_unknown_method_is_named() -> None:
    body = envelope('<FlyToTheMoon xmlns="urn:vim25"><_this type="ServiceInstance">x</_this></FlyToTheMoon>')
    with pytest.raises(codec.UnknownMethod, match="FlyToTheMoon"):
        codec.parse_request(body)


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(noise: bytes) -> None:
    with pytest.raises(codec.BadRequest):
        codec.parse_request(noise)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_damaged_calls_are_parsed_or_refused(position: int, noise: bytes) -> None:
    good = envelope(
        '<CreateContainerView xmlns="urn:vim25"><_this type="ViewManager">v</_this>'
        '<container type="Folder">f</container><type>VirtualMachine</type><recursive>true</recursive>'
        "</CreateContainerView>"
    )
    body = good[:position] + noise + good[position + len(noise) :]
    try:
        codec.parse_request(body)
    except codec.BadRequest as error:
        assert error.reason


def reply(value: Any, kind: Any, version: str = V8) -> bytes:
    request = codec.Request("CurrentTime", "urn:vim25", None, None, None)
    return codec.write_reply(request, value, kind, 0, version)


def test_required_fields_that_nobody_set_are_filled() -> None:
    summary = vim.vm.Summary(config=vim.vm.Summary.ConfigSummary(name="a<b"))
    body = reply(summary, vim.vm.Summary)
    back = read_back(body, vim.vm.Summary)
    assert back.config.name == "a<b"
    assert back.runtime.powerState in vim.VirtualMachine.PowerState.values
    assert b"dynamicType" not in body


def test_references_in_any_type_are_called_as_servers_call_them() -> None:
    change = vmodl.query.PropertyCollector.Change(name="x", op="assign", val=vim.VirtualMachine("vm-1"))
    body = reply(change, vmodl.query.PropertyCollector.Change)
    assert b'xsi:type="ManagedObjectReference" type="VirtualMachine"' in body
    assert read_back(body, vmodl.query.PropertyCollector.Change).val._moId == "vm-1"


def test_lists_in_any_type_keep_their_type_even_when_empty() -> None:
    kind = VmomiSupport.GetVmodlType("vim.Datastore[]")
    for refs in ([], [vim.Datastore("a"), vim.Datastore("b")]):
        value = codec.typed(kind, list(refs))
        body = reply(vmodl.DynamicProperty(name="datastore", val=value), vmodl.DynamicProperty)
        assert b"ArrayOfManagedObjectReference" in body
        assert list(read_back(body, vmodl.DynamicProperty).val) == refs


def test_long_numbers_and_enumerations_carry_their_declared_type() -> None:
    number = codec.typed(VmomiSupport.long, 5)
    assert b'xsi:type="xsd:long"' in reply(vmodl.DynamicProperty(name="n", val=number), vmodl.DynamicProperty)
    state = codec.typed(vim.VirtualMachine.PowerState, "poweredOn")
    body = reply(vmodl.DynamicProperty(name="p", val=state), vmodl.DynamicProperty)
    assert b'xsi:type="VirtualMachinePowerState"' in body


def test_fields_newer_than_the_client_are_left_out() -> None:
    ticket = vim.HostServiceTicket(
        port=902, sslCertificate="pem", service="nfc", serviceVersion="1.1", sessionId="x"
    )
    assert b"sslCertificate" not in reply(ticket, vim.HostServiceTicket)
    assert b"sslCertificate" in reply(ticket, vim.HostServiceTicket, "vim.version.v9_0_0_0")


def test_a_fault_is_read_back_with_its_text_and_fields() -> None:
    fault = vmodl.fault.ManagedObjectNotFound(msg="gone & <away>", obj=vim.VirtualMachine("vm-1"))
    back = read_back(codec.write_fault(fault, V8), object)
    assert isinstance(back, vmodl.fault.ManagedObjectNotFound)
    assert back.msg == "gone & <away>"
    assert back.obj._moId == "vm-1"


def fault_names() -> list[str]:
    names = [name for name in VmomiSupport._dataDefMap if name.startswith(("vim.fault.", "vmodl.fault."))]
    return sorted(name for name in names if issubclass(VmomiSupport.GetVmodlType(name), vmodl.MethodFault))


def test_every_fault_of_the_tables_can_be_raised_and_read_back() -> None:
    names = fault_names()
    assert len(names) > 300
    for name in names:
        kind = VmomiSupport.GetVmodlType(name)
        if not VmomiSupport.IsChildVersion(V8, kind._version):
            continue
        back = read_back(codec.write_fault(fault_named(name), V8), object)
        assert type(back) is kind
        info = vim.TaskInfo(key="t", task=vim.Task("t"), error=fault_named(name))
        assert type(read_back(reply(info, vim.TaskInfo), vim.TaskInfo).error) is kind


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ('"urn:vim25/6.5"', "vim.version.version11"),
        ("urn:vim25/8.0.1.0", "vim.version.v8_0_1_0"),
        ('"urn:vim25"', V8),
        ("", V8),
        ('"urn:vim25/9.1.1.0"', V8),
        ('"urn:vim25/12.0"', V8),
        ("nonsense", V8),
    ],
)
def test_the_reply_is_written_for_the_callers_version(action: str, expected: str) -> None:
    assert reply_version(action, "8.0.3.0") == expected


def test_the_versions_offered_end_with_the_hosts_own() -> None:
    text = service_versions("8.0.3.0").decode()
    assert "<version>8.0.3.0</version>" in text
    assert "<version>6.7</version>" in text
    assert "9.0.0.0" not in text
