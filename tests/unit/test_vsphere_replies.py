"""Whatever a server answers, the caller gets an error of ours or a result, and bounded memory."""

from __future__ import annotations

import http.client
import io
import random
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim

from vdkit.errors import LimitExceeded, VixError
from vdkit.net.trust import Trust
from vdkit.vsphere import connection, stub
from vdkit.vsphere.faults import translating
from vdkit.vsphere.stub import OLDEST_VERSION, VerifiedStub, negotiate_version

CONTENT = b"""<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
 xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<soapenv:Body><RetrieveServiceContentResponse xmlns="urn:vim25"><returnval>
<rootFolder type="Folder">ha-folder-root</rootFolder>
<propertyCollector type="PropertyCollector">ha-property-collector</propertyCollector>
<about><name>VMware ESXi</name><fullName>VMware ESXi 8.0.3 build-1</fullName><vendor>VMware, Inc.</vendor>
<version>8.0.3</version><build>1</build><osType>vmnix-x86</osType><productLineId>embeddedEsx</productLineId>
<apiType>HostAgent</apiType><apiVersion>8.0.3.0</apiVersion></about>
<sessionManager type="SessionManager">ha-sessionmgr</sessionManager>
</returnval></RetrieveServiceContentResponse></soapenv:Body></soapenv:Envelope>"""

FAULT = b"""<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>
<faultcode>ServerFaultCode</faultcode><faultstring>The session is not authenticated.</faultstring>
<detail><NotAuthenticatedFault xmlns="urn:vim25" xsi:type="NotAuthenticated">
<object type="Folder">ha-folder-root</object><privilegeId>System.View</privilegeId>
</NotAuthenticatedFault></detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>"""


class Canned:
    """A connection whose every answer is ``head`` and ``body``."""

    head: ClassVar[bytes] = b""
    body: ClassVar[bytes] = b""

    def __init__(self, host: str, port: int, *, trust: Trust, timeout: float) -> None:
        self.sock = None

    def connect(self) -> None: ...

    def close(self) -> None: ...

    def request(self, *arguments: Any, **more: Any) -> None: ...

    def getresponse(self) -> connection.BoundedReply:
        reply = connection.BoundedReply(Wire(self.head + self.body))  # type: ignore[arg-type]
        reply.begin()
        return reply


class Wire:
    """What http.client wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


@pytest.fixture(scope="module", autouse=True)
def canned() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(stub, "VerifiedConnection", Canned)
    yield
    patch.undo()


def answer(status: int, body: bytes, *, head: bytes | None = None) -> None:
    Canned.head = head or b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    Canned.body = body


def ask() -> Any:
    client = VerifiedStub("host", 443, Trust(sha1="AB" * 20), timeout=1)
    with translating("host:443", "look"):
        return vim.ServiceInstance("ServiceInstance", client).RetrieveContent()


def test_the_answers_themselves() -> None:
    answer(200, CONTENT)
    assert ask().about.apiType == "HostAgent"
    answer(500, FAULT)
    with pytest.raises(VixError, match="not authenticated"):
        ask()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>login</html>"),
        (200, b"not xml"),
        (404, b"no"),
        (503, b"busy"),
        (500, b"<a/>"),
        (200, FAULT),
        (500, CONTENT),
        (200, CONTENT.replace(b"RetrieveServiceContentResponse", b"Other")),
        (200, CONTENT.replace(b'type="Folder"', b'type="NoSuchType"')),
        (200, CONTENT.replace(b"<about>", b"<nothing>").replace(b"</about>", b"</nothing>")),
        (200, CONTENT.replace(b"urn:vim25", b"urn:other")),
    ],
)
def test_answers_of_something_else(status: int, body: bytes) -> None:
    answer(status, body)
    try:
        ask()
    except VixError as error:
        assert "\n" not in str(error)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.sampled_from([(200, CONTENT), (500, FAULT)]))
def test_damaged_answers(seed: int, kind: tuple[int, bytes]) -> None:
    status, text = kind
    chance = random.Random(seed)
    body = bytearray(text)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(body))
        match chance.randrange(4):
            case 0:
                body[at] = chance.randrange(256)
            case 1:
                del body[at : at + chance.randrange(1, 40)]
            case 2:
                body[at:at] = body[chance.randrange(len(body)) :][: chance.randrange(1, 60)]
            case _:
                del body[at:]
        body = body or bytearray(b" ")
    answer(status, bytes(body))
    try:
        ask()
    except VixError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=200))
def test_damaged_heads(head: bytes) -> None:
    answer(200, CONTENT, head=head)
    try:
        ask()
    except VixError:
        pass
    except http.client.HTTPException as error:
        raise AssertionError(repr(error)) from error


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_REPLY", 500)
    answer(200, CONTENT)
    with pytest.raises(LimitExceeded, match="500 bytes"):
        ask()


@pytest.mark.parametrize(
    ("status", "text", "version"),
    [
        (200, "<version>8.0.3.0</version><version>6.5</version>", "vim.version.v8_0_3_0"),
        (200, "<version>99.0</version><version>6.5</version>", "vim.version.version11"),
        (200, "<version>99.0</version>", OLDEST_VERSION),
        (200, "nonsense", OLDEST_VERSION),
        (404, "<version>8.0.3.0</version>", OLDEST_VERSION),
    ],
)
def test_the_newest_common_version(status: int, text: str, version: str) -> None:
    answer(status, text.encode())
    assert negotiate_version("host", 443, Trust(sha1="AB" * 20), timeout=1) == version
    answer(200, b"x" * (stub.MAX_VERSIONS_REPLY + 1))
    with pytest.raises(LimitExceeded):
        negotiate_version("host", 443, Trust(sha1="AB" * 20), timeout=1)
