"""What the simulated host refuses, named one to one after the faults of the vSphere API.

Each class says in ``vim_type`` which public fault it stands for (the name under ``vim.fault`` or
``vmodl.fault``), and in ``fields`` the values of that fault's own properties, by their API names. Nothing
here knows SOAP: the SOAP side turns a :class:`ModelFault` into the fault of the same name.

::

    ModelFault
    ├── InvalidArgument(invalidProperty)      vmodl
    │   └── InvalidName(name), InvalidDatastorePath(datastorePath)
    ├── NotSupported, ManagedObjectNotFound(obj)   vmodl
    ├── NotFound, DuplicateName(name, object), TaskInProgress
    ├── InvalidState
    │   └── InvalidPowerState(requestedState, existingState)
    ├── FileFault(file)
    │   └── FileLocked, FileNotFound, FileAlreadyExists, CannotAccessFile, NoDiskSpace(datastore)
    ├── VmConfigFault
    │   └── GenericVmConfigFault(reason), InvalidDeviceSpec(property, deviceIndex)
    └── SnapshotFault
        └── InvalidSnapshotFormat, SnapshotIncompatibleDeviceInVm

Sources of the names and properties: the published vSphere Web Services API reference.
"""

from __future__ import annotations

from typing import ClassVar

from vdkit.errors import (
    AccessDenied,
    AlreadyExists,
    ControlError,
    DiskFull,
    VixError,
)
from vdkit.errors import FileLocked as StoreFileLocked
from vdkit.errors import NotFound as StoreNotFound


class ModelFault(ControlError):
    """A refusal of the host. ``fields`` holds the fault's own properties under their API names."""

    vim_type: ClassVar[str] = "vmodl.fault.SystemError"

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.fields = fields


class InvalidArgument(ModelFault):
    """The text follows the host's own: ``A specified parameter was not correct: startOffset``."""

    vim_type = "vmodl.fault.InvalidArgument"

    def __init__(self, invalid_property: str, detail: str = "") -> None:
        text = f"A specified parameter was not correct: {invalid_property}"
        super().__init__(f"{text} ({detail})" if detail else text, invalidProperty=invalid_property)
        self.invalid_property = invalid_property


class InvalidName(ModelFault):
    vim_type = "vim.fault.InvalidName"

    def __init__(self, name: str) -> None:
        super().__init__(f"The name '{name}' is not valid.", name=name)


class InvalidDatastorePath(ModelFault):
    vim_type = "vim.fault.InvalidDatastorePath"

    def __init__(self, path: str) -> None:
        super().__init__(f"Invalid datastore path '{path}'.", datastorePath=path)


class NotSupported(ModelFault):
    vim_type = "vmodl.fault.NotSupported"


class ManagedObjectNotFound(ModelFault):
    """``kind`` is the managed type (``VirtualMachine``), ``moref`` its id."""

    vim_type = "vmodl.fault.ManagedObjectNotFound"

    def __init__(self, kind: str, moref: str) -> None:
        super().__init__(
            f"The object 'vim.{kind}:{moref}' has already been deleted or has not been completely created"
        )
        self.kind = kind
        self.moref = moref


class NotFound(ModelFault):
    vim_type = "vim.fault.NotFound"


class DuplicateName(ModelFault):
    """``moref`` is the object that has the name already."""

    vim_type = "vim.fault.DuplicateName"

    def __init__(self, name: str, kind: str, moref: str) -> None:
        super().__init__(f"The name '{name}' already exists.", name=name)
        self.kind = kind
        self.moref = moref


class TaskInProgress(ModelFault):
    vim_type = "vim.fault.TaskInProgress"


class InvalidState(ModelFault):
    vim_type = "vim.fault.InvalidState"


class InvalidPowerState(InvalidState):
    vim_type = "vim.fault.InvalidPowerState"

    def __init__(self, requested: str, existing: str) -> None:
        super().__init__(
            "The attempted operation cannot be performed in the current state "
            f"({'Powered on' if existing == 'poweredOn' else 'Powered off'}).",
            requestedState=requested,
            existingState=existing,
        )


class FileFault(ModelFault):
    """``file`` is a datastore path: ``[datastore1] vm/vm.vmdk``."""

    vim_type = "vim.fault.FileFault"
    text: ClassVar[str] = "Error caused by file {file}"

    def __init__(self, file: str, detail: str = "", **fields: object) -> None:
        text = self.text.format(file=file)
        super().__init__(f"{text}: {detail}" if detail else text, file=file, **fields)
        self.file = file


class FileLocked(FileFault):
    vim_type = "vim.fault.FileLocked"
    text = "Unable to access file {file} since it is locked"


class FileNotFound(FileFault):
    vim_type = "vim.fault.FileNotFound"
    text = "File {file} was not found"


class FileAlreadyExists(FileFault):
    vim_type = "vim.fault.FileAlreadyExists"
    text = "Cannot complete the operation because the file or folder {file} already exists"


class CannotAccessFile(FileFault):
    vim_type = "vim.fault.CannotAccessFile"
    text = "Unable to access file {file}"


class NoDiskSpace(FileFault):
    vim_type = "vim.fault.NoDiskSpace"
    text = "Insufficient disk space for {file}"


class VmConfigFault(ModelFault):
    vim_type = "vim.fault.VmConfigFault"


class GenericVmConfigFault(VmConfigFault):
    vim_type = "vim.fault.GenericVmConfigFault"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, reason=reason)


class InvalidDeviceSpec(VmConfigFault):
    vim_type = "vim.fault.InvalidDeviceSpec"

    def __init__(self, detail: str, *, device_index: int = 0) -> None:
        super().__init__(
            f"Invalid configuration for device '{device_index}': {detail}",
            property="deviceChange",
            deviceIndex=device_index,
        )


class SnapshotFault(ModelFault):
    vim_type = "vim.fault.SnapshotFault"


class InvalidSnapshotFormat(SnapshotFault):
    vim_type = "vim.fault.InvalidSnapshotFormat"


class SnapshotIncompatibleDeviceInVm(SnapshotFault):
    vim_type = "vim.fault.SnapshotIncompatibleDeviceInVm"


def from_store_error(error: VixError, file: str, *, datastore: str = "") -> ModelFault:
    """The fault a host would raise for a failure of its own storage; ``file`` is a datastore path."""
    match error:
        case ModelFault():
            return error
        case StoreNotFound():
            return FileNotFound(file, str(error))
        case AlreadyExists():
            return FileAlreadyExists(file, str(error))
        case StoreFileLocked():
            return FileLocked(file, str(error))
        case DiskFull():
            return NoDiskSpace(file, str(error), datastore=datastore)
        case AccessDenied():
            return CannotAccessFile(file, str(error))
        case _:
            return FileFault(file, str(error))
