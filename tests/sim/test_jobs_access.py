"""The part of access in a backup: the files stay where they are meanwhile, or the bytes are right anyway."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, point_content, session_of, snapshots_left
from pyVmomi import vim

from vdkit.backup import Kind as PointKind
from vdkit.errors import SnapshotFailed, VixError
from vdkit.jobs.backup import access_identity, backup_machine
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import tasks
from vdkit.vsphere.session import Session

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def center(simulated_host_factory: HostFactory) -> SimulatedHost:
    return simulated_host_factory(personality="vcenter")


def holders(host: SimulatedHost) -> list[str]:
    """Who keeps the machine from being relocated."""
    assert host.world is not None
    return host.world.disabled.sources(("VirtualMachine", host.machine("vm1").moref), "RelocateVM_Task")


def test_a_backup_keeps_the_files_where_they_are_until_its_snapshot_is_gone(
    center: SimulatedHost, tmp_path: Path
) -> None:
    center.power_on_all()
    Guest(center).scribble(3)
    repository = new_repository(tmp_path / "repo")
    events: list[tuple[str, list[str]]] = []
    outer = center.inventory.hook

    def hook(event: str, machine: object) -> None:
        if event in ("createSnapshot", "removeSnapshot", "consolidate"):
            events.append((event, holders(center)))
        outer(event, machine)  # type: ignore[arg-type]

    center.inventory.hook = hook
    with session_of(center) as session:
        result = backup_machine(session, "vm1", repository, Listener())
    assert result.warnings == ()
    assert {event for event, _ in events} == {"createSnapshot", "removeSnapshot", "consolidate"}
    assert all(held == [access_identity(repository.id)] for _, held in events)
    assert holders(center) == []


def test_a_backup_goes_on_without_the_privilege_and_says_so(center: SimulatedHost, tmp_path: Path) -> None:
    center.scenario.missing_privileges = frozenset({"Global.DisableMethods"})
    repository = new_repository(tmp_path / "repo")
    with session_of(center) as session:
        listener = Listener()
        # It is told, but is no reason to call the backup anything but good.
        assert backup_machine(session, "vm1", repository, listener).warnings == ()
        assert [text for text in listener.warnings if "Global.DisableMethods" in text]
        silent = Listener()
        backup_machine(session, "vm1", repository, silent, access_lock=False)
        assert silent.warnings == []


def test_a_backup_whose_end_fails_has_its_point_and_a_warning(center: SimulatedHost, tmp_path: Path) -> None:
    repository = new_repository(tmp_path / "repo")

    class Robbed(Listener):
        def progress(self, what: str, done: int, total: int) -> None:
            center.scenario.missing_privileges = frozenset({"Global.EnableMethods"})

    with session_of(center) as session:
        result = backup_machine(session, "vm1", repository, Robbed())
        assert len(repository.points()) == 1
        assert ["stays disabled" in text for text in result.warnings] == [True]
        center.scenario.missing_privileges = frozenset()
        assert backup_machine(session, "vm1", repository, Listener()).warnings == ()
    assert holders(center) == []


def test_a_backup_disables_nothing_that_it_may_not_enable_again(
    center: SimulatedHost, tmp_path: Path
) -> None:
    center.scenario.missing_privileges = frozenset({"Global.EnableMethods"})
    listener = Listener()
    with session_of(center) as session:
        assert backup_machine(session, "vm1", new_repository(tmp_path / "repo"), listener).warnings == ()
    assert [text for text in listener.warnings if "lacks Global.EnableMethods" in text]
    assert holders(center) == []


def test_a_backup_waits_for_a_storage_vmotion(center: SimulatedHost, tmp_path: Path) -> None:
    center.scenario.relocating = frozenset({"vm1"})
    repository = new_repository(tmp_path / "repo")

    class Waits(Listener):
        def note(self, text: str) -> None:
            super().note(text)
            if "waiting" in text:
                center.scenario.relocating = frozenset()

    listener = Waits()
    with session_of(center) as session:
        backup_machine(session, "vm1", repository, listener)
    assert [text for text in listener.notes if "waiting" in text]
    assert len(repository.points()) == 1


def test_snapshots_of_others_are_named_and_left_alone(center: SimulatedHost, tmp_path: Path) -> None:
    center.machine("vm1").create_snapshot("before the upgrade")
    listener = Listener()
    with session_of(center) as session:
        backup_machine(session, "vm1", new_repository(tmp_path / "repo"), listener)
    assert [text for text in listener.notes if "'before the upgrade'" in text]
    assert snapshots_left(center) == ["before the upgrade"]


def test_what_was_read_of_a_snapshot_that_somebody_deletes_is_no_backup(
    center: SimulatedHost, tmp_path: Path
) -> None:
    """An administrator deletes all snapshots: from then on the files may change under the reader."""
    center.power_on_all()
    machine, guest = center.machine("vm1"), Guest(center)
    guest.scribble(3)
    repository = new_repository(tmp_path / "repo")

    class Tidy(Listener):
        def progress(self, what: str, done: int, total: int) -> None:
            for snapshot in list(machine.snapshots()):
                # The disk is being read: it is merged later.
                with pytest.raises(VixError):
                    machine.remove_snapshot(snapshot)

    with session_of(center) as session:
        with pytest.raises(SnapshotFailed, match="deleted while its disks were read"):
            backup_machine(session, "vm1", repository, Tidy())
        assert repository.points() == []
        assert not machine.consolidation_needed
        point = backup_machine(session, "vm1", repository, Listener()).point
    assert point_content(repository, point) == guest.now()


def test_a_slow_consolidation_is_waited_for_and_told(center: SimulatedHost, tmp_path: Path) -> None:
    """kubev2v/forklift#1193: the next snapshot came while the last one was still being merged."""
    center.power_on_all()
    repository = new_repository(tmp_path / "repo")
    guest = Guest(center)
    with session_of(center) as session:
        backup_machine(session, "vm1", repository, Listener())
        guest.scribble(3)
        center.scenario.consolidation_seconds = 0.15
        listener = Listener()
        backup_machine(session, "vm1", repository, listener)
    assert [text for text in listener.notes if "merges disks" in text]
    assert not center.machine("vm1").consolidation_needed


# -- a relocation in the middle of it --------------------------------------------------------------------


class Moves(Listener):
    """Asks vCenter to move the machine once the first disk is being read."""

    def __init__(self, host: SimulatedHost, session: Session) -> None:
        super().__init__()
        self._host, self._session = host, session
        self.refused: VixError | None = None
        self.asked = False

    def progress(self, what: str, done: int, total: int) -> None:
        super().progress(what, done, total)
        if self.asked:
            return
        self.asked = True
        moref = self._host.machine("vm1").moref
        target = vim.Datastore(self._host.inventory.datastore("datastore2").moref)
        machine = self._session.managed(vim.VirtualMachine, moref)
        try:
            tasks.run(
                self._session,
                "relocate",
                lambda: machine.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target), None),
            )
        except VixError as error:
            self.refused = error


def running_with_two_datastores(center: SimulatedHost, folder: Path) -> Guest:
    """The machine runs and has written; there is a datastore that it could move to."""
    center.power_on_all()
    guest = Guest(center)
    guest.scribble(8)
    (folder / "second").mkdir()
    center.inventory.add_folder(folder / "second", "datastore2")
    return guest


def test_a_storage_vmotion_is_refused_while_a_backup_reads(center: SimulatedHost, tmp_path: Path) -> None:
    guest = running_with_two_datastores(center, tmp_path)
    repository = new_repository(tmp_path / "repo")
    with session_of(center) as session:
        listener = Moves(center, session)
        point = backup_machine(session, "vm1", repository, listener).point
        assert listener.refused is not None
        assert access_identity(repository.id) in str(listener.refused)
        assert point_content(repository, point) == guest.now()
        # Afterwards it may move, and the next backup finds it there.
        after = Moves(center, session)
        after.progress("", 0, 1)
        assert after.refused is None
        assert center.machine("vm1").disk(2000).file.startswith("[datastore2]")
        guest.scribble(8)
        second = backup_machine(session, "vm1", repository, Listener()).point
    assert second.manifest.kind is PointKind.INCREMENTAL
    assert point_content(repository, second) == guest.now()


def test_without_the_lock_a_storage_vmotion_costs_no_bytes(center: SimulatedHost, tmp_path: Path) -> None:
    """users.md row 30: who may not or does not want to forbid it still gets the right bytes, or an error."""
    guest = running_with_two_datastores(center, tmp_path)
    repository = new_repository(tmp_path / "repo")
    with session_of(center) as session:
        listener = Moves(center, session)
        point = backup_machine(session, "vm1", repository, listener, access_lock=False).point
        assert listener.refused is None
        assert center.machine("vm1").disk(2000).file.startswith("[datastore2]")
        assert point_content(repository, point) == guest.now()
        assert snapshots_left(center) == []


def test_without_the_lock_a_disk_opened_after_the_move_is_an_error(
    center: SimulatedHost, tmp_path: Path
) -> None:
    """Its path leads nowhere any more: no point, no snapshot, no wrong byte; the next backup works."""
    center.machine("vm1").add_disk(4 << 20)
    center.power_on_all()
    guest = Guest(center)
    guest.scribble(4)
    (tmp_path / "second").mkdir()
    center.inventory.add_folder(tmp_path / "second", "datastore2")
    repository = new_repository(tmp_path / "repo")
    with session_of(center) as session:
        with pytest.raises(VixError) as caught:
            backup_machine(session, "vm1", repository, Moves(center, session), access_lock=False, sleep=_no)
        assert "[datastore1] vm1" in str(caught.value)
        assert repository.points() == []
        assert snapshots_left(center) == []
        point = backup_machine(session, "vm1", repository, Listener()).point
    assert point_content(repository, point) == guest.now()


def _no(_seconds: float) -> None:
    """Nobody waits in a test."""
