"""pyVmomi's SOAP stub over connections that are verified before a byte of a request leaves.

pyVmomi's own ``thumbprint`` is looked at only after the usual verification has failed, so a certificate that
the system trusts would pass a pin that it does not match. Here every connection, also one that the HTTP
client reopens by itself, compares the certificate first.

Sources: pyVmomi's public source (``SoapStubAdapter``), the vSphere Web Services SDK's
``vimServiceVersions.xml``.
"""

from __future__ import annotations

import http.client
import re
from functools import partial
from typing import Any, Final

from pyVmomi import SoapAdapter, VmomiSupport, vmodl

from vdkit.errors import LimitExceeded, ProtocolError, VixError
from vdkit.net.connect import host_port
from vdkit.net.trust import Trust
from vdkit.vsphere.connection import VerifiedConnection
from vdkit.wire.vim import internal

#: What every vSphere since 5.5 understands; used when a server does not list its versions.
OLDEST_VERSION: Final = "vim.version.version9"
#: Bytes of the list of versions that are looked at.
MAX_VERSIONS_REPLY: Final = 256 << 10
#: An idle connection older than this (seconds) is not used again: hosts close theirs after about a minute,
#: and a call that changes something must not be lost in the gap.
IDLE_SECONDS: Final = 20
#: Calls whose answer always has a value; the first one finds out whom we talk to.
_NEVER_EMPTY: Final = ("RetrieveServiceContent", "RetrieveInternalContent", "Login")
#: Connections kept open per session.
POOL_SIZE: Final = 4


class VerifiedStub(SoapAdapter.SoapStubAdapter):  # type: ignore[misc]  # pyVmomi has no types
    """A SOAP stub whose connections are all :class:`VerifiedConnection`.

    A host gives a cookie with every answer to a call that had none, or had an expired one. Only that of the
    log-in counts, so ``takes_cookies`` is on for the stub that logs in and for no other: taken from any
    thread's call, such a cookie would push out the one that another thread has just logged in with.
    """

    takes_cookies = False
    _cookie = ""
    _session_id: str | None = None

    def __init__(
        self, host: str, port: int, trust: Trust, *, timeout: float, version: str = OLDEST_VERSION
    ) -> None:
        super().__init__(
            host=host,
            port=port,
            path="/sdk",
            version=version,
            poolSize=POOL_SIZE,
            acceptCompressedResponses=False,  # so that the size of a reply can be bounded
            connectionPoolTimeout=IDLE_SECONDS,
        )
        self.where = self.host
        self.scheme = partial(VerifiedConnection, trust=trust, timeout=timeout)
        self._again = partial(VerifiedStub, host, port, trust, timeout=timeout, version=version)

    @property
    def cookie(self) -> str:
        """The header that goes with each call; pyVmomi sets it from answers."""
        return self._cookie

    @cookie.setter
    def cookie(self, text: str) -> None:
        if self.takes_cookies:
            self._cookie = text

    def for_login(self) -> VerifiedStub:
        """Another one to the same host, without a session, that takes the cookie which it is given."""
        stub = self._again()
        stub.takes_cookies = True
        return stub

    @property
    def sessionId(self) -> str | None:  # noqa: N802
        """The name is pyVmomi's, which sets it from answers too."""
        return self._session_id

    @sessionId.setter
    def sessionId(self, session_id: str | None) -> None:  # noqa: N802
        if self.takes_cookies:
            self._session_id = session_id

    def use_session(self, session_id: str | None) -> None:
        """Send this session's cookie with every call from now on; None: no cookie."""
        self._session_id = session_id
        self._cookie = f'vmware_soap_session="{session_id}"' if session_id else ""

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        """The name and the arguments are pyVmomi's."""
        try:
            answer = super().InvokeMethod(mo, info, args, outerStub)
        except (vmodl.MethodFault, OSError, http.client.HTTPException, VixError):
            raise
        except Exception as error:
            # pyVmomi raises bare TypeError, KeyError, Exception for replies that do not fit its tables.
            raise ProtocolError(
                f"{self.where}: the answer to {info.wsdlName} cannot be understood "
                f"({type(error).__name__}: {error})"
            ) from error
        if answer is None and info.wsdlName in _NEVER_EMPTY:
            # What is no SOAP at all, a page of HTML for instance, is read as an answer without a value.
            raise ProtocolError(
                f"{self.where}: the answer to {info.wsdlName} is not that of a vSphere host",
                remedy="check host and port: is it a proxy, or another web server?",
            )
        return answer

    def SerializeRequest(self, mo: Any, info: Any, args: Any) -> bytes:  # noqa: N802
        """The name and the arguments are pyVmomi's."""
        return internal.in_its_namespace(info.wsdlName, super().SerializeRequest(mo, info, args))


def negotiate_version(host: str, port: int, trust: Trust, *, timeout: float) -> str:
    """The newest API version that both this server and pyVmomi's tables know."""
    connection = VerifiedConnection(host, port, trust=trust, timeout=timeout)
    try:
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        reply = connection.getresponse()
        text = reply.read(MAX_VERSIONS_REPLY + 1)
    finally:
        connection.close()
    if len(text) > MAX_VERSIONS_REPLY:
        raise LimitExceeded(
            f"{host_port(host, port)}: its list of API versions is longer than {MAX_VERSIONS_REPLY} bytes"
        )
    if reply.status not in (http.client.OK, http.client.NOT_FOUND):
        # Not the host, or one whose service is not up yet; what it is, the status tells.
        raise http.client.HTTPException(f"{reply.status} {reply.reason}")
    if reply.status != http.client.OK:
        return OLDEST_VERSION
    # A regular expression on purpose: the document is flat, and an XML parser would expand entities.
    offered = set(re.findall(r"<version>([0-9.]{1,32})</version>", text.decode("utf-8", "replace")))
    ours = (version for version in VmomiSupport.versionIdMap if version.startswith("vim.version."))
    known = [(_order(VmomiSupport.versionIdMap[version]), version) for version in ours]
    usable = [item for item in known if VmomiSupport.versionIdMap[item[1]] in offered]
    return max(usable)[1] if usable else OLDEST_VERSION


def _order(number: str) -> tuple[int, ...]:
    parts = number.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
