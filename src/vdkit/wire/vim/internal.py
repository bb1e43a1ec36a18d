"""Calls that the published API lacks: data-port tickets, and methods disabled for one object.

pyVmomi's tables do not have them; :func:`register` adds them. ``RetrieveInternalContent`` and ``NfcService``
go under the namespace ``urn:vim25`` that the kit itself uses for them. Source of names, parameters and
replies: our NFC specification, sections 2 and 14.3. ``DisableMethods`` and ``EnableMethods`` of the
AuthorizationManager go under ``urn:internalvim25``; source: govmomi's
``object/authorization_manager_internal.go`` (Apache-2.0).

How a client asks for a ticket::

    internal.register()
    stub = service_instance._stub
    content = internal.retrieve_internal_content(stub)
    nfc = internal.NfcService(content.nfcService, stub)
    ticket = nfc.NfcGetVmFiles(vm=vm)               # vim.HostServiceTicket
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyVmomi import VmomiSupport, vim

NAMESPACE = "urn:vim25"
#: The oldest namespace version that knows the calls: every client may send them.
_SINCE = "vim.version.version1"
_PROPERTY_FLAGS_OPTIONAL = VmomiSupport.F_OPTIONAL

_SERVICE = "vim.NfcService"
_INTERNAL_INSTANCE = "vim.InternalServiceInstance"
_CONTENT = "vim.InternalServiceInstanceContent"
_TICKET = (0, "vim.HostServiceTicket", "vim.HostServiceTicket")
_DISK = (
    ("vm", "vim.VirtualMachine", _SINCE, 0, None),
    ("diskDeviceKey", "int", _SINCE, 0, None),
    ("hostForAccess", "vim.HostSystem", _SINCE, _PROPERTY_FLAGS_OPTIONAL, None),
)
_NFC_METHODS = (
    (
        "nfcGetVmFiles",
        "NfcGetVmFiles",
        _SINCE,
        (("vm", "vim.VirtualMachine", _SINCE, 0, None),),
        _TICKET,
        "VirtualMachine.Provisioning.GetVmFiles",
        None,
    ),
    (
        "nfcRandomAccessOpenReadonly",
        "NfcRandomAccessOpenReadonly",
        _SINCE,
        _DISK,
        _TICKET,
        "VirtualMachine.Provisioning.DiskRandomRead",
        None,
    ),
    (
        "nfcRandomAccessOpenDisk",
        "NfcRandomAccessOpenDisk",
        _SINCE,
        _DISK,
        _TICKET,
        "VirtualMachine.Provisioning.DiskRandomAccess",
        None,
    ),
    (
        "nfcFileManagement",
        "NfcFileManagement",
        _SINCE,
        (("ds", "vim.Datastore", _SINCE, 0, None),),
        _TICKET,
        "Datastore.FileManagement",
        None,
    ),
    (
        "nfcGetServerNfcLibVersion",
        "NfcGetServerNfcLibVersion",
        _SINCE,
        (("hostForAccess", "vim.HostSystem", _SINCE, 0, None),),
        (0, "int", "int"),
        "System.View",
        None,
    ),
)
_AUTHORIZATION = "vim.InternalAuthorizationManager"
_DISABLED_METHOD = "vim.DisabledMethodRequest"
#: The namespace of the calls of :data:`_AUTHORIZATION_METHODS` on the wire.
INTERNAL_NAMESPACE = "urn:internalvim25"
_ENTITIES = ("entity", "vim.ManagedEntity[]", _SINCE, 0, None)
_SOURCE = ("sourceId", "string", _SINCE, 0, None)
_AUTHORIZATION_METHODS = (
    (
        "disableMethods",
        "DisableMethods",
        _SINCE,
        (
            _ENTITIES,
            ("method", f"{_DISABLED_METHOD}[]", _SINCE, 0, None),
            _SOURCE,
            ("sessionScope", "boolean", _SINCE, _PROPERTY_FLAGS_OPTIONAL, None),
        ),
        (0, "void", "void"),
        "Global.DisableMethods",
        None,
    ),
    (
        "enableMethods",
        "EnableMethods",
        _SINCE,
        (_ENTITIES, ("method", "string[]", _SINCE, 0, None), _SOURCE),
        (0, "void", "void"),
        "Global.EnableMethods",
        None,
    ),
)
_INSTANCE_METHODS = (
    (
        "retrieveInternalContent",
        "RetrieveInternalContent",
        _SINCE,
        (),
        (0, _CONTENT, _CONTENT),
        "System.View",
        None,
    ),
)


def register() -> None:
    """Add the types to pyVmomi's tables. Calling it again does nothing."""
    try:
        VmomiSupport.GetWsdlType(NAMESPACE, "NfcService")
    except KeyError:
        VmomiSupport.CreateManagedType(
            _SERVICE, "NfcService", "vmodl.ManagedObject", _SINCE, None, _NFC_METHODS
        )
        VmomiSupport.CreateDataType(
            _CONTENT,
            "InternalServiceInstanceContent",
            "vmodl.DynamicData",
            _SINCE,
            (("nfcService", "string", _SINCE, 0),),
        )
        # A type of its own: pyVmomi's ServiceInstance may be loaded already and does not take more methods.
        VmomiSupport.CreateManagedType(
            _INTERNAL_INSTANCE,
            "InternalServiceInstance",
            "vmodl.ManagedObject",
            _SINCE,
            None,
            _INSTANCE_METHODS,
        )
        VmomiSupport.CreateDataType(
            _DISABLED_METHOD,
            "DisabledMethodRequest",
            "vmodl.DynamicData",
            _SINCE,
            (("method", "string", _SINCE, 0), ("reasonId", "string", _SINCE, _PROPERTY_FLAGS_OPTIONAL)),
        )
        VmomiSupport.CreateManagedType(
            _AUTHORIZATION,
            "InternalAuthorizationManager",
            "vmodl.ManagedObject",
            _SINCE,
            None,
            _AUTHORIZATION_METHODS,
        )
        _tolerate_unknown_fields(VmomiSupport.GetWsdlType(NAMESPACE, "InternalServiceInstanceContent"))


def retrieve_internal_content(stub: Any) -> Any:
    """The internal content of the host behind a pyVmomi stub; ``.nfcService`` is the id of its NfcService.

    Raises what pyVmomi raises for a call: ``vim.fault.NotAuthenticated`` and others, ``OSError``.
    """
    register()
    method = VmomiSupport.GetWsdlMethod(NAMESPACE, "RetrieveInternalContent").info
    # The call is made on the public service instance, although our table lists it under another type.
    return stub.InvokeMethod(vim.ServiceInstance("ServiceInstance", stub), method, [])


def disable_methods(
    stub: Any, manager: Any, entities: Sequence[Any], methods: Sequence[str], source: str
) -> None:
    """Let nobody call ``methods`` (WSDL names) on ``entities`` until ``source`` enables them again.

    ``manager`` is the host's AuthorizationManager. Raises what pyVmomi raises for a call.
    """
    register()
    request = VmomiSupport.GetWsdlType(NAMESPACE, "DisabledMethodRequest")
    info = VmomiSupport.GetWsdlMethod(NAMESPACE, "DisableMethods").info
    wanted = [request(method=name, reasonId="") for name in methods]
    stub.InvokeMethod(manager, info, [list(entities), wanted, source, False])


def enable_methods(
    stub: Any, manager: Any, entities: Sequence[Any], methods: Sequence[str], source: str
) -> None:
    """Undo what ``source`` disabled; what others did stays."""
    register()
    info = VmomiSupport.GetWsdlMethod(NAMESPACE, "EnableMethods").info
    stub.InvokeMethod(manager, info, [list(entities), list(methods), source])


def in_its_namespace(method: str, request: bytes) -> bytes:
    """A serialised request under the namespace of its method, which pyVmomi does not tell apart."""
    if method not in {name for _, name, *_ in _AUTHORIZATION_METHODS}:
        return request
    ours = f'<{method} xmlns="{NAMESPACE}">'.encode()
    return request.replace(ours, f'<{method} xmlns="{INTERNAL_NAMESPACE}">'.encode(), 1)


def content_type() -> Any:
    """The type of the internal content, for whoever answers :func:`retrieve_internal_content`."""
    register()
    return VmomiSupport.GetWsdlType(NAMESPACE, "InternalServiceInstanceContent")


def NfcService(moid: str, stub: Any) -> Any:  # noqa: N802 - it stands for the class of this name
    """The managed object of that id: ``NfcGetVmFiles(vm)`` and the other calls on it."""
    register()
    return VmomiSupport.GetWsdlType(NAMESPACE, "NfcService")(moid, stub)


def _tolerate_unknown_fields(content: Any) -> None:
    """Let the reply hold more than ``nfcService``: real hosts name some twenty managers of unpublished types.

    Every child is taken as text (the id of an object), which is all that a caller needs.
    """
    known = content._GetPropertyInfo.__func__

    def lookup(cls: Any, name: str) -> Any:
        try:
            return known(cls, name)
        except AttributeError:
            return VmomiSupport.Object(name=name, type=str, version=_SINCE, flags=VmomiSupport.F_OPTIONAL)

    content._GetPropertyInfo = classmethod(lookup)
