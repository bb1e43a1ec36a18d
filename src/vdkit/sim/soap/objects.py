"""Managed objects of the host: what has properties to read and methods to call.

A class says which type of the API it stands for (``kind``, the WSDL name) and marks its getters with
:func:`prop` and its methods with :func:`call`. What the type declares and nobody provides reads as unset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pyVmomi import VmomiSupport

from vdkit.sim.soap.codec import NAMESPACE, typed

if TYPE_CHECKING:
    from vdkit.sim.soap.sessions import Session

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Client:
    """Who is at the other end: ``address`` is theirs, ``server`` is what they dialled to reach us."""

    address: str = ""
    agent: str = ""
    server: str = ""


@dataclass(frozen=True)
class Call:
    """One call as a method of an object sees it: its arguments by API name, and who makes it."""

    session: Session
    arguments: Any
    client: Client
    #: ``Set-Cookie`` headers of the reply.
    cookies: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arguments, name)


def prop(*names: str) -> Callable[[F], F]:
    """Marks the getter of a property, by its API name (or names)."""

    def mark(function: F) -> F:
        function.__dict__["api_properties"] = names
        return function

    return mark


def call(*names: str) -> Callable[[F], F]:
    """Marks a method, by its WSDL name (or names)."""

    def mark(function: F) -> F:
        function.__dict__["api_methods"] = names
        return function

    return mark


class Managed:
    """One managed object. ``moid`` is its id, unique in the host among objects of its kind."""

    kind: ClassVar[str] = "ManagedObject"
    _getters: ClassVar[dict[str, str]] = {}
    _calls: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._getters = dict(cls._getters)
        cls._calls = dict(cls._calls)
        for attribute, member in vars(cls).items():
            marks: dict[str, Any] = getattr(member, "__dict__", {})
            for name in marks.get("api_properties", ()):
                cls._getters[name] = attribute
            for name in marks.get("api_methods", ()):
                cls._calls[name] = attribute

    def __init__(self, moid: str) -> None:
        self.moid = moid

    def __repr__(self) -> str:
        return f"<{self.kind} {self.moid}>"

    @property
    def type(self) -> Any:
        """pyVmomi's class of the object's kind."""
        return VmomiSupport.GetWsdlType(NAMESPACE, self.kind)

    @property
    def ref(self) -> Any:
        """The reference that stands for the object on the wire."""
        return self.type(self.moid)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.moid

    def read(self, name: str) -> Any:
        """The value of a property in its declared type, None if unset. Raises AttributeError for unknown."""
        info = self.type._GetPropertyInfo(name)
        getter = self._getters.get(name)
        if getter is None:
            return None
        return typed(info.type, getattr(self, getter)())

    def property_names(self) -> Iterator[str]:
        """Every property that this object provides, declared order."""
        for info in self.type._GetPropertyList():
            if info.name in self._getters:
                yield info.name

    def method(self, name: str) -> Callable[[Call], Any] | None:
        """The handler of a method, by WSDL name; None if the object does not serve it."""
        attribute = self._calls.get(name)
        if attribute is None:
            return None
        handler: Callable[[Call], Any] = getattr(self, attribute)
        return handler


def refs(objects: Iterator[Managed] | list[Managed]) -> list[Any]:
    return [one.ref for one in objects]
