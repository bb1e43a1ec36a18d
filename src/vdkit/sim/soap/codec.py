"""SOAP 1.1 requests to objects and objects to SOAP replies, on pyVmomi's tables and serialiser.

pyVmomi is a client library; what makes it serve is found in our feasibility notes, section 1: a request
element is parsed in one go through a type whose fields are ``_this`` and the method's parameters, a reply is
written by the client's serialiser with the *caller's* version, so that fields newer than the caller are left
out by the library's own rules. Three of its habits are corrected here, on the serialiser object: a reference
in an ``anyType`` must be called ``ManagedObjectReference``, required fields that are unset get a default, and
a required list may be empty.

Nothing here does I/O. What cannot be parsed raises :class:`BadRequest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from io import StringIO
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from pyVmomi import SoapAdapter, VmomiSupport

NAMESPACE = "urn:vim25"
#: Elements inside elements; a real request of any method stays far below.
MAX_DEPTH = 64
_ENVELOPE = f"{SoapAdapter.XMLNS_SOAPENV} Envelope"
_BODY = f"{SoapAdapter.XMLNS_SOAPENV} Body"
#: The property accessor of pyVmomi's client; it is in no table.
FETCH = "Fetch"


class BadRequest(Exception):
    """A request that is not SOAP, or not of our tables; ``reason`` is for the fault's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownMethod(BadRequest):
    """A well-formed request for a method that is in no table."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Unable to resolve WSDL method name {name}")
        self.name = name


@dataclass(frozen=True)
class Request:
    """One call: the method's WSDL name, the object it is made on, and a value for every parameter."""

    name: str
    namespace: str
    target: Any
    arguments: Any
    #: pyVmomi's description of the method; None for ``Fetch``.
    method: Any


class _Parser(SoapAdapter.ExpatDeserializerNSHandlers):  # type: ignore[misc]  # pyVmomi is untyped
    """Finds the operation element in the body and lets pyVmomi's deserialiser take it from there."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = ParserCreate(namespace_separator=SoapAdapter.NS_SEP)
        self.parser.buffer_text = True
        self.parser.EntityDeclHandler = _refuse_entities
        self.path: list[str] = []
        self.name = ""
        self.namespace = ""
        self.method: Any = None
        self.deserializer = SoapAdapter.SoapDeserializer(None)
        SoapAdapter.SetHandlers(self.parser, SoapAdapter.GetHandlers(self))

    def StartElementHandler(self, tag: str, attributes: dict[str, str]) -> None:  # noqa: N802 - pyVmomi's name
        if self.path == [_ENVELOPE, _BODY]:
            self._start_operation(tag, attributes)
            return
        if len(self.path) >= MAX_DEPTH:
            raise BadRequest("elements are nested too deeply")
        self.path.append(tag)
        if self.path[0] != _ENVELOPE:
            raise BadRequest("the document is not a SOAP envelope")

    def EndElementHandler(self, tag: str) -> None:  # noqa: N802 - pyVmomi's name
        if self.path and self.path[-1] == tag:
            self.path.pop()

    def CharacterDataHandler(self, data: str) -> None:  # noqa: N802 - pyVmomi's name
        """Text outside the operation means nothing."""

    def _start_operation(self, tag: str, attributes: dict[str, str]) -> None:
        if self.name:
            raise BadRequest("more than one call in the body")
        self.namespace, _, self.name = tag.rpartition(SoapAdapter.NS_SEP)
        self.method = _find_method(self.namespace, self.name)
        kind = _request_type(self.name, self.method)
        self.deserializer.Deserialize(self.parser, kind, False, self.nsMap)
        self.deserializer.StartElementHandler(tag, attributes)


def _refuse_entities(*_: object) -> None:
    raise BadRequest("entity declarations are not accepted")


def _find_method(namespace: str, name: str) -> Any:
    if name == FETCH:
        return None
    for space in (namespace, NAMESPACE):
        try:
            return VmomiSupport.GetWsdlMethod(space, name).info
        except KeyError:
            continue
    raise UnknownMethod(name)


@lru_cache(maxsize=512)
def _request_type(name: str, method: Any) -> Any:
    """A data type with the fields ``_this`` and the parameters of the method."""
    flags = VmomiSupport.F_OPTIONAL
    this = VmomiSupport.Object(
        name="_this", type=VmomiSupport.ManagedObject, version=VmomiSupport.BASE_VERSION, flags=flags
    )
    if method is None:
        prop = VmomiSupport.Object(name="prop", type=str, version=VmomiSupport.BASE_VERSION, flags=flags)
        fields = [this, prop]
    else:
        # All optional while parsing, so that a parameter left out is None and can be named in the fault.
        fields = [this] + [
            VmomiSupport.Object(name=p.name, type=p.type, version=p.version, flags=p.flags | flags)
            for p in method.params
        ]
    members = {
        "_wsdlName": name,
        "_version": VmomiSupport.BASE_VERSION,
        "_propList": fields,
        "_propInfo": {field.name: field for field in fields},
    }
    return type(f"{name}Request", (VmomiSupport.DataObject,), members)


def parse_request(body: bytes) -> Request:
    """The call in a request body. Raises :class:`BadRequest`."""
    found = _Parser()
    try:
        found.parser.Parse(body, True)
    except BadRequest:
        raise
    except ExpatError as error:
        raise BadRequest(f"not well-formed XML: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise BadRequest(f"{found.name or 'request'}: {_brief(error)}") from error
    arguments = found.deserializer.GetResult()
    if not found.name or arguments is None:
        raise BadRequest("no call in the SOAP body")
    if not isinstance(arguments._this, VmomiSupport.ManagedObject):
        raise BadRequest(f"{found.name}: _this is missing")
    return Request(found.name, found.namespace, arguments._this, arguments, found.method)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# -- replies ---------------------------------------------------------------------------------------

_NAMESPACES = {**SoapAdapter.SOAP_NSMAP, NAMESPACE: ""}
_START = f"{SoapAdapter.XML_HEADER}\n{SoapAdapter.SOAP_START}"


def write_reply(request: Request, value: Any, result: Any, flags: int, version: str) -> bytes:
    """The reply to a request; ``result`` is the declared type of ``value`` and ``version`` the caller's."""
    out = StringIO()
    out.write(f'{_START}<{request.name}Response xmlns="{NAMESPACE}">')
    if result is not type(None) and value is not None:
        info = VmomiSupport.Object(
            name="returnval", type=result, version=VmomiSupport.BASE_VERSION, flags=flags
        )
        _serializer(out, version).Serialize(value, info)
    out.write(f"</{request.name}Response>{SoapAdapter.SOAP_END}")
    return out.getvalue().encode()


def write_fault(fault: Any, version: str) -> bytes:
    """The body of a reply with a ``vmodl.MethodFault``; its ``msg`` becomes the fault string."""
    out = StringIO()
    text = SoapAdapter.XmlEscape(fault.msg or type(fault)._wsdlName)
    out.write(
        f"{_START}<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{text}</faultstring>"
    )
    out.write("<detail>")
    name = VmomiSupport.GetWsdlName(VmomiSupport.GetCompatibleType(type(fault), version))
    info = VmomiSupport.Object(name=f"{name}Fault", type=object, version=version, flags=0)
    shown = _copy_without_message(fault)
    serializer = _serializer(out, version)
    serializer._SerializeDataObject(shown, info, f' xmlns="{NAMESPACE}"', NAMESPACE)
    out.write(f"</detail></soapenv:Fault>{SoapAdapter.SOAP_END}")
    return out.getvalue().encode()


def _copy_without_message(fault: Any) -> Any:
    kind = type(fault)
    fields = {p.name: getattr(fault, p.name) for p in kind._GetPropertyList() if p.name != "msg"}
    return kind(**{name: value for name, value in fields.items() if not _is_unset(value)})


def _is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, list) and not value)


def _serializer(out: StringIO, version: str) -> Any:
    serializer = SoapAdapter.SoapSerializer(out, version, dict(_NAMESPACES))
    serializer.outermostAttrs = ""
    qualified, serialize = serializer._QName, serializer._Serialize
    serialize_object = serializer._SerializeDataObject

    def qualified_name(kind: Any, default: str) -> tuple[str, str]:
        attribute, name = qualified(kind, default)
        # Other clients (govmomi) read an empty reference from xsi:type="ManagedObject".
        return attribute, "ManagedObjectReference" if name == "ManagedObject" else name

    def serialize_value(value: Any, info: Any, default: str) -> None:
        if value is None and not info.flags & VmomiSupport.F_OPTIONAL:
            value = default_of(info.type)
        elif isinstance(value, list) and not value and info.type is not object:
            return
        serialize(value, info, default)

    def serialize_data(value: Any, info: Any, attribute: str, default: str) -> None:
        if not isinstance(value, SoapAdapter.LocalizedMethodFault):
            serialize_object(value, info, attribute, default)
            return
        # The library copies a fault field by field and stumbles over required ones that are unset.
        if info.type is not SoapAdapter.LocalizedMethodFault:
            more, name = qualified_name(SoapAdapter.LocalizedMethodFault, default)
            attribute += f'{more} {serializer.xsiPrefix}type="{name}"'
        out.write(f"<{info.name}{attribute}>")
        field = value._GetPropertyInfo("fault")
        serialize_object(_copy_without_message(value.fault), field, "", default)
        serialize_value(value.localizedMessage, value._GetPropertyInfo("localizedMessage"), default)
        out.write(f"</{info.name}>")

    serializer._QName = qualified_name
    serializer._Serialize = serialize_value
    serializer._SerializeDataObject = serialize_data
    return serializer


def default_of(kind: Any) -> Any:
    """A value for a required field that nobody set: zero, the first of an enumeration, an empty object.

    A reference leads nowhere then: its id is empty.
    """
    if kind is object:
        return ""
    if kind is type:
        return VmomiSupport.ManagedObject
    if kind is VmomiSupport.ManagedMethod:
        return VmomiSupport.GetWsdlMethod(NAMESPACE, "CurrentTime")
    if issubclass(kind, VmomiSupport.ManagedObject):
        return kind("")
    if issubclass(kind, list | VmomiSupport.DataObject):
        return kind()
    if issubclass(kind, VmomiSupport.Enum):
        return kind(kind.values[0])
    if issubclass(kind, datetime):
        return datetime(1970, 1, 1, tzinfo=UTC)
    if issubclass(kind, str | int | float | bytes):
        return kind()
    return None


def typed(kind: Any, value: Any) -> Any:
    """``value`` as the declared type: what stands in an ``anyType`` carries its own type on the wire.

    A plain list becomes the declared array, an int a ``long`` where one is declared, a string an enumeration.
    """
    if value is None or kind is object:
        return value
    if issubclass(kind, list):
        return value if isinstance(value, VmomiSupport.Array) else kind(value)
    if (
        issubclass(kind, VmomiSupport.DataObject | VmomiSupport.ManagedObject)
        or kind is bool
        or kind is datetime
    ):
        return value
    if issubclass(kind, int | float | str) and type(value) is not kind:
        return kind(value)
    return value
