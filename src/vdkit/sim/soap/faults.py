"""Errors of the model as faults of the API."""

from __future__ import annotations

from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from vdkit.errors import VixError
from vdkit.sim import faults as model
from vdkit.sim.soap.codec import NAMESPACE, BadRequest, UnknownMethod


def as_fault(error: BaseException) -> Any:
    """The ``vmodl.MethodFault`` for anything raised while serving a call; its ``msg`` is the text."""
    match error:
        case vmodl.MethodFault():
            return error
        case model.ManagedObjectNotFound():
            return not_found(reference(error.kind, error.moref))
        case model.DuplicateName():
            other = reference(error.kind, error.moref)
            return vim.fault.DuplicateName(msg=str(error), name=str(error.fields["name"]), object=other)
        case model.ModelFault():
            return _from_model(error)
        case UnknownMethod():
            return vmodl.fault.InvalidRequest(msg=error.reason)
        case BadRequest():
            return vmodl.fault.InvalidRequest(msg=f"Unable to read the request: {error.reason}")
        case VixError():
            return system_error(str(error))
        case _:
            return system_error(f"{type(error).__name__}: {error}")


def _from_model(error: model.ModelFault) -> Any:
    kind = VmomiSupport.GetVmodlType(error.vim_type)
    fault = kind(msg=str(error))
    for name, value in error.fields.items():
        setattr(fault, name, value)
    return fault


def reference(kind: str, moid: str) -> Any:
    return VmomiSupport.GetWsdlType(NAMESPACE, kind)(moid)


def not_found(ref: Any) -> Any:
    text = (
        f"The object '{type(ref).__name__}:{ref._moId}' has already been deleted or has not been "
        "completely created"
    )
    return vmodl.fault.ManagedObjectNotFound(msg=text, obj=ref)


def system_error(reason: str) -> Any:
    return vmodl.fault.SystemError(msg=f"A general system error occurred: {reason}", reason=reason)


def invalid_argument(name: str) -> Any:
    text = f"A specified parameter was not correct: {name}"
    return vmodl.fault.InvalidArgument(msg=text, invalidProperty=name)


def invalid_property(path: str) -> Any:
    return vmodl.query.InvalidProperty(msg=f"The property {path} is not known", name=path)


def not_authenticated(ref: Any) -> Any:
    return vim.fault.NotAuthenticated(
        msg="The session is not authenticated.", object=ref, privilegeId="System.View"
    )


def method_not_found(ref: Any, method: str) -> Any:
    text = f"The method {method} of {type(ref).__name__}:{ref._moId} is not served by the simulated host"
    return vmodl.fault.MethodNotFound(msg=text, receiver=ref, method=method)
