"""From the body of a request to the body of a reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pyVmomi import VmomiSupport, vim

from vdkit.errors import UsageError
from vdkit.sim.soap import codec
from vdkit.sim.soap.authorization import method_disabled
from vdkit.sim.soap.faults import (
    as_fault,
    invalid_argument,
    invalid_property,
    method_not_found,
    not_authenticated,
    not_found,
    system_error,
)
from vdkit.sim.soap.objects import Call, Client, Managed
from vdkit.sim.soap.sessions import Session, nobodys_cookie
from vdkit.sim.soap.world import World, fault_named

#: What a client without a session may do.
ANONYMOUS = frozenset({"RetrieveServiceContent", "Login"})
_ANONYMOUS_PROPERTIES = frozenset({("ServiceInstance", "content")})
#: Stands for the session of a call that needs none.
_NOBODY = Session("", "", datetime(1970, 1, 1, tzinfo=UTC))


@dataclass
class SoapReply:
    """An HTTP reply: status 200, or 500 for a fault."""

    status: int
    body: bytes
    cookies: list[str] = field(default_factory=list)


class Dispatcher:
    def __init__(self, world: World) -> None:
        self._world = world

    def serve(self, body: bytes, action: str, cookie: str | None, client: Client) -> SoapReply:
        """``action`` is the SOAPAction header: it names the version that the client speaks."""
        version = reply_version(action, self._world.scenario.api_version)
        cookies: list[str] = []
        try:
            request = codec.parse_request(body)
            value, result, flags = self._answer(request, cookie, client, cookies)
            return SoapReply(200, codec.write_reply(request, value, result, flags, version), cookies)
        except Exception as error:  # noqa: BLE001 - a client always gets a fault, never a broken connection
            if not isinstance(error, codec.BadRequest):
                self._world.note_error(error)
            return SoapReply(500, self._fault(error, version), cookies)

    def _fault(self, error: Exception, version: str) -> bytes:
        try:
            return codec.write_fault(as_fault(error), version)
        except (TypeError, ValueError, KeyError, AttributeError) as broken:
            # A fault with fields that its type does not take: our mistake, but still one that is answered.
            self._world.internal_errors.append(broken)
            return codec.write_fault(system_error(f"{type(error).__name__}: {broken}"), version)

    def _answer(
        self, request: codec.Request, cookie: str | None, client: Client, cookies: list[str]
    ) -> tuple[Any, Any, int]:
        session = self._world.session_of(cookie)
        if session is None:
            # As hosts do, who know each client by a cookie before it has logged in.
            cookies.append(nobodys_cookie())
        if session is None and not _anonymous(request):
            raise not_authenticated(request.target)
        self._world.relocations.follow()
        managed = self._world.find(request.target, session)
        if managed is None:
            raise not_found(request.target)
        if request.name == codec.FETCH:
            return _fetch(managed, request.arguments.prop or "")
        handler = managed.method(request.name)
        if handler is None:
            raise method_not_found(request.target, request.name)
        self._check(request, managed)
        value = handler(Call(session or _NOBODY, request.arguments, client, cookies))
        if session is not None:
            # A call that waited for long has kept its session alive.
            self._world.sessions.touch(session)
        return value, request.method.result, request.method.resultFlags

    def _check(self, request: codec.Request, managed: Managed) -> None:
        scenario = self._world.scenario
        method = request.method
        privilege = method.privId
        if privilege in scenario.missing_privileges:
            raise vim.fault.NoPermission(
                msg="Permission to perform this operation was denied.",
                object=request.target,
                privilegeId=privilege,
            )
        if scenario.free_licence and _changes(request.name, privilege):
            raise vim.fault.RestrictedVersion(
                msg="Current license or ESXi version prohibits execution of the requested operation."
            )
        for source in self._world.disabled.sources(managed.key, request.name):
            raise method_disabled(source)
        self._world.wait(scenario.call_seconds.get(request.name, 0.0))
        named = scenario.call_errors.get(request.name)
        if named is not None:
            raise fault_named(named)
        for parameter in method.params:
            given = getattr(request.arguments, parameter.name)
            if given is None and not parameter.flags & VmomiSupport.F_OPTIONAL:
                raise invalid_argument(parameter.name)


def _changes(method: str, privilege: str | None) -> bool:
    """True for what the free licence refuses: tasks, and what needs more than the right to look."""
    return method.endswith("_Task") if privilege is None else not privilege.startswith("System.")


def _anonymous(request: codec.Request) -> bool:
    if request.name == codec.FETCH:
        kind = type(request.target)._wsdlName
        return (kind, request.arguments.prop) in _ANONYMOUS_PROPERTIES
    return request.name in ANONYMOUS


def _fetch(managed: Managed, name: str) -> tuple[Any, Any, int]:
    try:
        info = managed.type._GetPropertyInfo(name)
    except AttributeError:
        raise invalid_property(name) from None
    return managed.read(name), info.type, info.flags | VmomiSupport.F_OPTIONAL


@lru_cache(maxsize=256)
def reply_version(action: str, host: str) -> str:
    """pyVmomi's name of the version to write for a client: its own, or the host's if that is older.

    An action without a version (``"urn:vim25"``), and one newer than our tables, mean the host's.
    """
    own: str = VmomiSupport.versionMap[f"vim25/{host}"]
    asked = VmomiSupport.versionMap.get(action.strip().strip('"').removeprefix("urn:"))
    if asked is None or not VmomiSupport.IsChildVersion(own, asked):
        return own
    known: str = asked
    return known


def check_version(host: str) -> None:
    """Refuse an API version that no table has. Raises UsageError."""
    if f"vim25/{host}" not in VmomiSupport.versionMap:
        raise UsageError(f"{host!r} is no version of the vSphere API", remedy="use one such as 8.0.3.0")


def service_versions(host: str) -> bytes:
    """The document ``/sdk/vimServiceVersions.xml``: the newest version and all before it."""
    own = VmomiSupport.versionMap[f"vim25/{host}"]
    priors = [
        VmomiSupport.versionIdMap[version]
        for version in VmomiSupport.GetServiceVersions("vim25")
        if version.startswith("vim.") and version != own and VmomiSupport.IsChildVersion(own, version)
    ]
    listed = "".join(f"   <version>{one}</version>\n" for one in priors if one)
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<namespaces version="1.0">\n <namespace>\n'
        f"  <name>urn:vim25</name>\n  <version>{host}</version>\n  <priorVersions>\n{listed}"
        "  </priorVersions>\n </namespace>\n</namespaces>\n"
    ).encode()
