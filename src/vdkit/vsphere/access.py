"""Keep a machine's disks where they are while somebody reads them: relocation disabled for it, and enabled.

A storage vMotion moves the files away under a reader. vCenter lets a program disable the method for one
machine, under an identity of its own (the *source* of the call), until that identity enables it again; it
stays disabled when the program is killed. So exactly the call that succeeded is owed an end, and the same
identity can end it after a crash. What other identities disabled is not touched.

Only vCenter moves machines: a stand-alone host has neither the need nor the calls. The account needs
``Global.DisableMethods`` and ``Global.EnableMethods``, which many administrators do not give.

Sources: govmomi's ``object/authorization_manager_internal.go`` (Apache-2.0) for the calls, the vSphere Web
Services API reference (ManagedEntity.disabledMethod, TaskInfo), the published VDDK programming guide
(PrepareForAccess, EndAccess) for what they promise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyVmomi import vim, vmodl

from vdkit.block.workers import CancelToken
from vdkit.errors import (
    Cancelled,
    ControlError,
    NoPrivilege,
    NotSupported,
    ObjectBusy,
    SessionExpired,
    UsageError,
    VixError,
)
from vdkit.vsphere import privileges, tasks
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import Row, of_all, of_one
from vdkit.vsphere.session import Session
from vdkit.wire.vim import internal

#: The methods that move a machine's disks. MigrateVM_Task is not among them: it moves the running machine
#: to another host and leaves its files, and a reader survives that.
METHODS: Final = ("RelocateVM_Task",)
#: The most characters of an identity.
MAX_IDENTITY: Final = 50
#: Seconds that :func:`wait_for_access` waits for a relocation to end: moving a large disk takes long.
DEFAULT_DEADLINE: Final = 600.0
#: Seconds between two attempts: first, longest. Each is shortened by chance, so that many jobs do not ask at
#: once.
BUSY_FIRST: Final = 1.0
BUSY_LONGEST: Final = 30.0

_DISABLED: Final = ("disabledMethod",)
#: What tasks that move disks are called, as part of the id of their description.
_MOVING: Final = ("relocat", "storagevmotion", "svmotion")


def check_identity(identity: str) -> None:
    """Raises UsageError for what vCenter would not take as the source of the calls."""
    if not 0 < len(identity) <= MAX_IDENTITY or not identity.isprintable():
        raise UsageError(
            f"identity {identity[:MAX_IDENTITY]!r}: 1 to {MAX_IDENTITY} printable characters that name the "
            "program are needed"
        )


def prepare_for_access(session: Session, vm: VirtualMachine, identity: str) -> None:
    """Disable relocation of the machine under ``identity``; again for the same identity changes nothing.

    Owed an :func:`end_access` only if it returns. Raises ObjectBusy while the machine is being relocated: to
    be called again (:func:`wait_for_access` does). NotSupported on a stand-alone host, NoPrivilege.
    """
    what = _allowed(session, vm, identity, "disable")
    _refuse_moving(session, vm, what)
    try:
        _call(session, vm, what, internal.disable_methods, identity)
    except BaseException as error:
        if not _is_refusal(error):
            _undo(session, vm, identity, error)
        raise
    try:
        # A relocation may have begun between the look and the call.
        _refuse_moving(session, vm, what)
    except BaseException as error:
        _undo(session, vm, identity, error)
        raise


def _undo(session: Session, vm: VirtualMachine, identity: str, error: BaseException) -> None:
    """A call that failed is owed no end, so what it has done, or may have, is undone."""
    try:
        end_access(session, vm, identity)
    except VixError as failure:
        error.add_note(f"{_still_disabled(session, vm, identity, failure)}; {_REMEDY.format(vm=vm.name)}")


def end_access(session: Session, vm: VirtualMachine, identity: str) -> None:
    """Enable relocation again as far as ``identity`` disabled it; fine if it did not, also after a crash.

    Raises NotSupported on a stand-alone host, NoPrivilege.
    """
    what = _allowed(session, vm, identity, "enable")
    _call(session, vm, what, internal.enable_methods, identity)


def _call(session: Session, vm: VirtualMachine, what: str, call: Callable[..., None], identity: str) -> None:
    """Either call is as good as reading: doing it twice is doing it once."""
    manager = session.content.authorizationManager
    machine = session.managed(vim.VirtualMachine, vm.moref)
    try:
        session.read(what, lambda: call(session.stub, manager, [machine], METHODS, identity))
    except ControlError as error:
        if isinstance(error.__cause__, vmodl.fault.InvalidRequest):
            # How servers answer a call that they have never heard of.
            raise NotSupported(f"{error.message} (the server does not have that call)") from error
        raise


def _is_refusal(error: BaseException) -> bool:
    """True if the host itself has said no, hence has done nothing; a proxy's or no answer says nothing."""
    return isinstance(error, (ControlError, NotSupported)) and not isinstance(error, SessionExpired)


def wait_for_access(
    session: Session,
    vm: VirtualMachine,
    identity: str,
    *,
    deadline: float = DEFAULT_DEADLINE,
    cancel: CancelToken | None = None,
    tell: Callable[[str], None] | None = None,
    chance: Callable[[], float] = random.random,
) -> None:
    """:func:`prepare_for_access`, called again while the machine is busy, for ``deadline`` seconds.

    ``tell`` hears once why it waits; the session's own sleep does the waiting. Raises ObjectBusy at the
    deadline, Cancelled.
    """
    until = time.monotonic() + deadline
    pause, told = BUSY_FIRST, False
    while True:
        if cancel is not None and cancel.cancelled:
            raise Cancelled(
                f"{session.where}: disable relocation of {vm.name} ({vm.moref}): no longer waiting"
            )
        try:
            prepare_for_access(session, vm, identity)
            return
        except ObjectBusy as error:
            left = until - time.monotonic()
            if left <= 0:
                raise ObjectBusy(
                    f"{error.message}; it still was after {deadline:.0f} s",
                    remedy="let the relocation end, then run the command again",
                ) from error
            if tell is not None and not told:
                tell(f"waiting for at most {deadline:.0f} s: {error.message}")
                told = True
        session.sleep(min(pause * (0.5 + chance() / 2), left))
        pause = min(pause * 2, BUSY_LONGEST)


@contextmanager
def access(
    session: Session,
    vm: VirtualMachine,
    identity: str,
    *,
    deadline: float = DEFAULT_DEADLINE,
    without: Callable[[str], None] | None = None,
    cancel: CancelToken | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[bool]:
    """Relocation is disabled for the length of the block; the block gets True if it really is.

    With ``without`` a stand-alone host and a missing privilege are no failure: it hears why, once, and the
    block runs all the same. A failure of the block is what the caller sees, one of enabling is added to it as
    a note, or raised if the block succeeded.
    """
    try:
        _require_end(session, vm, identity)
        wait_for_access(session, vm, identity, deadline=deadline, cancel=cancel, tell=tell)
    except (NotSupported, NoPrivilege) as error:
        if without is None:
            raise
        without(f"relocation of {vm.name} is not disabled: {error}")
        held = False
    else:
        held = True
    try:
        yield held
    except BaseException as error:
        if held:
            try:
                end_access(session, vm, identity)
            except VixError as failure:
                error.add_note(_still_disabled(session, vm, identity, failure))
        raise
    if held:
        try:
            end_access(session, vm, identity)
        except VixError as failure:
            raise type(failure)(
                _still_disabled(session, vm, identity, failure), remedy=_REMEDY.format(vm=vm.name)
            ) from failure


def _require_end(session: Session, vm: VirtualMachine, identity: str) -> None:
    """Who may disable but not enable would leave the machine so for ever. Raises NoPrivilege."""
    what, privilege = _allowed(session, vm, identity, "disable"), "Global.EnableMethods"
    root = privileges.Target(vim.Folder, session.content.rootFolder._GetMoId(), "the root folder")
    machine = privileges.Target(vim.VirtualMachine, vm.moref, vm.name)
    if privileges.lacks_everywhere(session, privilege, (root, machine)):
        raise NoPrivilege(
            f"{session.where}: {what}: the account lacks {privilege}, so it could not enable it again",
            remedy=f"ask the administrator to add {privilege} to the role of this account",
        )


def is_relocation_disabled(session: Session, vm: VirtualMachine) -> bool:
    """True if nobody can relocate the machine now; vCenter does not tell who disabled it."""
    what = f"look at the disabled methods of {vm.name}"
    return _is_disabled(of_one(session, vim.VirtualMachine, vm.moref, _DISABLED, what))


def with_relocation_disabled(session: Session) -> set[str]:
    """Ids of all the machines that nobody can relocate now."""
    rows = of_all(session, {vim.VirtualMachine: _DISABLED}, "look at the disabled methods of all machines")
    return {row.moref for row in rows if _is_disabled(row)}


def _is_disabled(row: Row) -> bool:
    return any(_method_name(method) in METHODS for method in row.get("disabledMethod", ()))


def _method_name(method: Any) -> str:
    """pyVmomi gives a name, a method of its tables, or something that only has a name."""
    if isinstance(method, str):
        return method
    info = getattr(method, "info", None)
    name: str = method.name if info is None else info.wsdlName
    return name


_REMEDY: Final = "vdkit cleanup {vm} ends it"


def _still_disabled(session: Session, vm: VirtualMachine, identity: str, error: VixError) -> str:
    what = f"relocation of {vm.name} ({vm.moref})"
    return f"{session.where}: {what} stays disabled under {identity!r}: {error.message}"


def _allowed(session: Session, vm: VirtualMachine, identity: str, act: str) -> str:
    """What is attempted, for messages, if it can be attempted at all."""
    check_identity(identity)
    what = f"{act} relocation of {vm.name} ({vm.moref})"
    if not session.about.is_vcenter:
        raise NotSupported(
            f"{session.where}: {what}: {session.about.full_name or 'this host'} is not a vCenter",
            remedy="log in to the vCenter that manages the host, or go on without: only vCenter relocates",
        )
    if session.content.authorizationManager is None:
        raise NotSupported(f"{session.where}: {what}: the server has no AuthorizationManager")
    return what


def _refuse_moving(session: Session, vm: VirtualMachine, what: str) -> None:
    for task in tasks.running(session, vm):
        if any(part in task.act for part in _MOVING):
            raise ObjectBusy(
                f"{session.where}: {what}: {task.moref} is moving it to other storage",
                remedy="try again when that has ended",
            )
