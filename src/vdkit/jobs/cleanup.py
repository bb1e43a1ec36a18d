"""What runs that crashed or were killed left on a host: found, told, and cleaned if asked to.

Ours, and nothing else: snapshots whose description names the run that made them, relocation disabled under a
repository's identity, disks that wait for consolidation. A run that still goes on looks the same as one that
was killed, so nothing is touched that may be in use: the lock of a repository that is given decides for what
belongs to it, age or the operator's word for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Final

from pyVmomi import vim

from vdkit.backup import Repository
from vdkit.backup import lock as locks
from vdkit.errors import (
    ControlError,
    LoginFailed,
    ObjectNotFound,
    RepositoryLocked,
    SessionExpired,
    VixError,
)
from vdkit.jobs.backup import access_identity
from vdkit.jobs.observer import Observer
from vdkit.vsphere import access, consolidation, inventory, snapshots
from vdkit.vsphere.model import Snapshot, VirtualMachine
from vdkit.vsphere.session import Session

#: Seconds after which a snapshot of a run that nobody can be asked about counts as left behind.
DEFAULT_AGE: Final = 24 * 3600.0


class Kind(Enum):
    SNAPSHOT = "snapshot"
    CONSOLIDATION = "consolidation"
    ACCESS = "access"
    #: The machine could not be looked at.
    MACHINE = "machine"


class State(Enum):
    """``REMAINS``: it should go and has not; ``KEPT``: it may be in use, or is not ours alone."""

    REMAINS = "remains"
    CLEANED = "cleaned"
    KEPT = "kept"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing. ``machine`` and ``moref`` say where, ``what`` names it, ``reason`` why its state is such."""

    kind: Kind
    machine: str
    moref: str
    what: str
    state: State
    reason: str
    run: str | None = None
    #: Seconds by the host's clock; None if the host does not tell.
    age: float | None = None


@dataclass(frozen=True, slots=True)
class CleanupResult:
    items: tuple[Leftover, ...]

    def count(self, *states: State) -> int:
        return sum(item.state in states for item in self.items)

    @property
    def cleaned(self) -> int:
        return self.count(State.CLEANED)

    @property
    def remaining(self) -> int:
        """What should go and has not: not asked to, or it failed."""
        return self.count(State.REMAINS, State.FAILED)

    @property
    def kept(self) -> int:
        return self.count(State.KEPT)


@dataclass(frozen=True, slots=True)
class Choice:
    """What counts as left behind.

    ``repositories``: their locks tell whether a run goes on. ``older_than``: seconds, for snapshots of other
    runs. ``runs``: only what these made, whatever its age. ``identities``: more names under which relocation
    may have been disabled.
    """

    repositories: tuple[Repository, ...] = ()
    older_than: float = DEFAULT_AGE
    runs: frozenset[str] = frozenset()
    identities: tuple[str, ...] = ()


def clean_up(
    session: Session,
    observer: Observer,
    *,
    machines: Sequence[str] = (),
    choice: Choice | None = None,
    remove: bool = False,
) -> CleanupResult:
    """Look at ``machines`` (names, paths, ids, UUIDs; none means all of them) and, with ``remove``, clean.

    What fails at one thing does not keep the others from being cleaned: it is in the result. Raises
    ObjectNotFound for a machine that is not there, and what logging in and listing raise.
    """
    if machines:
        found = [inventory.find_machine(session, text) for text in machines]
        fixed = {
            vm.moref
            for vm in found
            if session.about.is_vcenter and access.is_relocation_disabled(session, vm)
        }
    else:
        found = inventory.list_machines(session)
        fixed = access.with_relocation_disabled(session) if session.about.is_vcenter else set()
    now = _host_time(session)
    items: list[Leftover] = []
    for vm in found:
        if not _is_suspicious(vm, fixed):
            continue
        work = _Machine(
            session, vm, choice or Choice(), observer, now, is_fixed=vm.moref in fixed, remove=remove
        )
        items += _kept_going(work, vm, observer)
    return CleanupResult(tuple(items))


def _kept_going(work: _Machine, vm: VirtualMachine, observer: Observer) -> list[Leftover]:
    """A machine that cannot be looked at does not hide the others; one that is gone has no leftovers."""
    try:
        return work.run()
    except ObjectNotFound:
        return []
    except (LoginFailed, SessionExpired):
        raise
    except ControlError as error:
        observer.warning(f"{vm.name}: {error}")
        return [Leftover(Kind.MACHINE, vm.name, vm.moref, "what is left of it", State.FAILED, str(error))]


def _is_suspicious(vm: VirtualMachine, fixed: Collection[str]) -> bool:
    return bool(vm.snapshots) or vm.consolidation_needed or vm.moref in fixed


def _host_time(session: Session) -> datetime:
    """By the clock that dates the snapshots: ours may differ."""
    service = vim.ServiceInstance("ServiceInstance", session.stub)
    now: datetime = session.read("ask for the time", service.CurrentTime)
    return now


class _Machine:
    """The leftovers of one machine, in the order in which they have to go."""

    def __init__(
        self,
        session: Session,
        vm: VirtualMachine,
        choice: Choice,
        observer: Observer,
        now: datetime,
        *,
        is_fixed: bool,
        remove: bool,
    ) -> None:
        self._session, self._vm, self._choice = session, vm, choice
        self._observer, self._now = observer, now
        self._is_fixed, self._remove = is_fixed, remove
        self._seen_runs: list[str] = []
        self._in_use = False

    def run(self) -> list[Leftover]:
        with _locks(self._choice.repositories, self._vm, self._observer, hold=self._remove) as locked:
            items = [self._act(item, act) for item, act in self._snapshots(locked)]
            items += [self._act(item, act) for item, act in self._consolidation(locked)]
            items += [self._act(item, act) for item, act in self._access(locked)]
        return items

    def _act(self, item: Leftover, act: Callable[[], Leftover | None]) -> Leftover:
        """Do what the item says should be done, if asked to."""
        if item.state is not State.REMAINS or not self._remove:
            return item
        self._observer.step(f"{item.machine}: cleaning {item.what}")
        try:
            return act() or replace(item, state=State.CLEANED, reason="done")
        except VixError as error:
            self._observer.warning(f"{item.machine}: {item.what}: {error}")
            return replace(item, state=State.FAILED, reason=str(error))

    def _item(self, kind: Kind, what: str, state: State, reason: str) -> Leftover:
        return Leftover(kind, self._vm.name, self._vm.moref, what, state, reason)

    # -- snapshots -------------------------------------------------------------------------------

    def _snapshots(self, locked: Collection[str]) -> list[tuple[Leftover, Callable[[], None]]]:
        """Youngest first: so no snapshot is merged into one that goes next."""
        found = snapshots.find_leftovers(self._session, self._vm)
        self._seen_runs = [run for one in found if (run := snapshots.run_of(one)) is not None]
        judged = [(self._judge(one, locked), self._remover(one)) for one in reversed(found)]
        self._in_use = any(item.state is State.KEPT for item, _ in judged)
        return judged

    def _remover(self, snapshot: Snapshot) -> Callable[[], None]:
        return lambda: snapshots.remove(self._session, self._vm, snapshot.moref, tell=self._observer.note)

    def _judge(self, snapshot: Snapshot, locked: Collection[str]) -> Leftover:
        run = snapshots.run_of(snapshot) or ""
        age = None if snapshot.created is None else (self._now - snapshot.created).total_seconds()
        state, reason = self._verdict(run, age, locked)
        item = self._item(Kind.SNAPSHOT, f"snapshot {snapshot.name!r} ({snapshot.moref})", state, reason)
        return replace(item, run=run, age=age)

    def _verdict(self, run: str, age: float | None, locked: Collection[str]) -> tuple[State, str]:
        repository = _repository_of(run)
        if repository in locked:
            return State.KEPT, "a backup into its repository is running"
        if self._choice.runs:
            if run in self._choice.runs:
                return State.REMAINS, "made by the run that was named"
            return State.KEPT, "made by another run than the one named"
        if any(repository == one.id for one in self._choice.repositories):
            return State.REMAINS, "no backup into its repository is running"
        if age is None:
            return State.KEPT, "the host does not tell its age: name its run"
        if age < self._choice.older_than:
            return State.KEPT, f"only {age:.0f} s old: a backup may be using it"
        return State.REMAINS, f"{age:.0f} s old"

    # -- consolidation ---------------------------------------------------------------------------

    def _consolidation(self, locked: Collection[str]) -> list[tuple[Leftover, Callable[[], None]]]:
        if self._choice.runs or not consolidation.is_outstanding(self._session, self._vm):
            return []
        state, reason = State.REMAINS, "the host says that it is needed"
        if locked:
            state, reason = State.KEPT, "a backup of the machine is running"
        elif self._in_use:
            state, reason = State.KEPT, "a backup of the machine may be running: it has a snapshot"
        item = self._item(Kind.CONSOLIDATION, "disks that wait for consolidation", state, reason)
        tell = self._observer.note
        return [(item, lambda: consolidation.settle(self._session, self._vm, tell=tell))]

    # -- access ----------------------------------------------------------------------------------

    def _access(self, locked: Collection[str]) -> list[tuple[Leftover, Callable[[], Leftover | None]]]:
        if not self._is_fixed:
            return []
        what = "relocation that is disabled"
        known = [_repository_of(run) for run in self._seen_runs]
        known += [one.id for one in self._choice.repositories]
        if any(one in locked for one in known):
            state, reason = State.KEPT, "a backup of the machine is running"
            return [(self._item(Kind.ACCESS, what, state, reason), lambda: None)]
        certain = [one.id for one in self._choice.repositories]
        # Another run into the same repository may be going on, under the same identity.
        asked = {_repository_of(run) for run in self._seen_runs if run not in self._choice.runs}
        named = [_repository_of(run) for run in self._seen_runs if run in self._choice.runs]
        certain += [one for one in named if one not in asked]
        identities = [*self._choice.identities, *(access_identity(one) for one in dict.fromkeys(certain))]
        if not identities:
            reason = "vCenter does not tell by whom: name the repository or the identity"
            return [(self._item(Kind.ACCESS, what, State.KEPT, reason), lambda: None)]
        reason = f"perhaps under {', '.join(repr(one) for one in identities)}"
        item = self._item(Kind.ACCESS, what, State.REMAINS, reason)
        return [(item, lambda: self._end_access(item, identities))]

    def _end_access(self, item: Leftover, identities: Sequence[str]) -> Leftover | None:
        for identity in identities:
            access.end_access(self._session, self._vm, identity)
        if access.is_relocation_disabled(self._session, self._vm):
            return replace(item, state=State.KEPT, reason="somebody else keeps it disabled")
        return None


def _repository_of(run: str) -> str:
    """The id of the repository that a run of a backup wrote into: ``REPOSITORY.POINT``."""
    return run.partition(".")[0]


@contextmanager
def _locks(
    repositories: Sequence[Repository], vm: VirtualMachine, observer: Observer, *, hold: bool
) -> Iterator[frozenset[str]]:
    """The ids of the repositories into which a backup of the machine is running.

    With ``hold`` none begins in the others meanwhile; without, their locks are only tried: whoever just looks
    must not make a backup fail.
    """
    busy = set()
    with ExitStack() as held:
        for repository in repositories:
            folder = None if vm.instance_uuid is None else repository.folder_of(vm.instance_uuid.lower())
            if folder is None:
                continue
            try:
                lock = locks.acquire(repository.folder_store(folder), observer.note)
            except RepositoryLocked:
                busy.add(repository.id)
                continue
            if hold:
                held.callback(lock.release)
            else:
                lock.release()
        yield frozenset(busy)
