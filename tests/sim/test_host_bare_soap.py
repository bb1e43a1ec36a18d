"""The ticket dialogue as a small client without pyVmomi speaks it: section 2 of our NFC specification.

Such a client reads the first element of a name anywhere in a reply, opens a connection for every call, and
names no API version.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from simclients import envelope, post

from vdkit.sim.host import SimulatedHost


def first(text: str, name: str) -> str:
    found = re.search(rf"<(?:\w+:)?{name}\b[^>]*>([^<]*)<", text)
    assert found is not None, f"{name} is not in {text}"
    return found[1]


def ask(host: SimulatedHost, inner: str, cookie: str | None = None) -> tuple[str, dict[str, str]]:
    headers = {"Content-Type": "text/xml; charset=utf-8", "Connection": "close"}
    if cookie is not None:
        headers["Cookie"] = cookie
    status, text, answered = post(host, envelope(inner), headers)
    assert status == 200, text
    assert "faultstring" not in text
    assert answered["connection"] == "close"
    return text, answered


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_a_ticket_in_five_calls(
    personality: str, simulated_host_factory: Callable[..., SimulatedHost]
) -> None:
    host = simulated_host_factory(personality=personality)
    esx = personality == "esx"
    this = '<_this type="ServiceInstance">ServiceInstance</_this>'

    content, _ = ask(host, f'<RetrieveServiceContent xmlns="urn:vim25">{this}</RetrieveServiceContent>')
    assert first(content, "apiType") == ("HostAgent" if esx else "VirtualCenter")
    assert re.match(r"VMware (ESXi|vCenter Server) 8\.0\.3 build-\d+$", first(content, "fullName"))
    manager = first(content, "sessionManager")
    assert manager == ("ha-sessionmgr" if esx else "SessionManager")

    login = (
        f'<Login xmlns="urn:vim25"><_this type="SessionManager">{manager}</_this><userName>root</userName>'
        f"<password>{host.password.reveal()}</password></Login>"
    )
    _, headers = ask(host, login)
    assert re.match(r'vmware_soap_session="\w+"; Path=/; HttpOnly; Secure$', headers["set-cookie"])
    cookie = headers["set-cookie"].partition(";")[0]

    inner = f'<RetrieveInternalContent xmlns="urn:vim25">{this}</RetrieveInternalContent>'
    service = first(ask(host, inner, cookie)[0], "nfcService")
    assert service == ("ha-nfc-service" if esx else "nfcService")

    moref = host.machine("vm1").moref
    request = (
        f'<NfcGetVmFiles xmlns="urn:vim25"><_this type="NfcService">{service}</_this>'
        f'<vm type="VirtualMachine">{moref}</vm></NfcGetVmFiles>'
    )
    ticket, _ = ask(host, request, cookie)
    order = re.findall(r"<(host|port|sslThumbprint|service|serviceVersion|sessionId)>", ticket)
    expected = ["port", "sslThumbprint", "service", "serviceVersion", "sessionId"]
    assert order == (expected if esx else ["host", *expected])
    assert first(ticket, "port") == str(host.nfc_port)
    assert re.fullmatch(r"(?:[0-9A-F]{2}:){19}[0-9A-F]{2}", first(ticket, "sslThumbprint"))
    assert first(ticket, "service") == ("nfc" if esx else "vpxa-nfc")
    assert first(ticket, "serviceVersion") == "1.1"
    assert first(ticket, "sessionId") != first(ask(host, request, cookie)[0], "sessionId")

    ask(host, f'<Logout xmlns="urn:vim25"><_this type="SessionManager">{manager}</_this></Logout>', cookie)
    status, text, _ = post(host, envelope(request), {"Cookie": cookie})
    assert (status, first(text, "faultstring")) == (500, "The session is not authenticated.")
    assert "<faultcode>ServerFaultCode</faultcode>" in text
    assert re.search(r'<NotAuthenticatedFault [^>]*xsi:type="NotAuthenticated"', text)
