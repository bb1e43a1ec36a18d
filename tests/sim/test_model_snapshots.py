"""Snapshots are real: what qemu reads from the datastore's files is what was there at the moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from model_helpers import (
    MIB,
    Shadow,
    areas,
    content,
    differing,
    new_inventory,
    new_machine,
    qemu_same,
)

from vdkit.errors import Closed
from vdkit.sim import diskaccess, links
from vdkit.sim.faults import (
    FileLocked,
    GenericVmConfigFault,
    InvalidName,
    NotFound,
    SnapshotFault,
    TaskInProgress,
)
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import MAX_SNAPSHOT_DEPTH

KEY = 2000
qemu = pytest.mark.witness("qemu-img")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".vmdk")


@qemu
@pytest.mark.parametrize("thin", [True, False])
def test_a_snapshot_freezes_the_base_and_its_removal_merges_the_delta(tmp_path: Path, thin: bool) -> None:
    folder = tmp_path / "ds"
    machine = new_machine(new_inventory(folder), "vm", thin=thin)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(30)
    before = disk.frozen()
    snapshot = machine.create_snapshot("backup")
    assert files(folder / "vm") == ["vm-000001-delta.vmdk", "vm-000001.vmdk", "vm-flat.vmdk", "vm.vmdk"]
    assert snapshot.disks[KEY].file == "[ds] vm/vm.vmdk"
    assert machine.disk(KEY).file == "[ds] vm/vm-000001.vmdk"
    disk.scribble(30)
    disk.device.flush()
    qemu_same(folder / "vm" / "vm.vmdk", before, tmp_path)
    qemu_same(folder / "vm" / "vm-000001.vmdk", disk.frozen(), tmp_path)
    machine.remove_snapshot(snapshot)
    assert files(folder / "vm") == ["vm-flat.vmdk", "vm.vmdk"]
    assert content(disk.device) == disk.frozen()
    disk.scribble(5)
    machine.power_off()
    qemu_same(folder / "vm" / "vm.vmdk", disk.frozen(), tmp_path)
    assert not machine.consolidation_needed


def build(machine: Machine, disk: Shadow, count: int) -> list[bytes]:
    contents = []
    for number in range(count):
        disk.scribble(12)
        contents.append(disk.frozen())
        machine.create_snapshot(f"s{number}")
    disk.scribble(12)
    return contents


@qemu
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("running", [True, False])
def test_any_snapshot_of_three_can_go_and_the_others_keep_their_content(
    tmp_path: Path, which: int, running: bool
) -> None:
    folder = tmp_path / "ds"
    machine = new_machine(new_inventory(folder))
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest(), seed=which)
    contents = build(machine, disk, 3)
    if not running:
        machine.power_off()
    victim = list(machine.snapshots())[which]
    machine.remove_snapshot(victim)
    del contents[which]
    left = list(machine.snapshots())
    assert len(left) == 2
    for snapshot, expected in zip(left, contents, strict=True):
        qemu_same(folder / snapshot.disks[KEY].file.removeprefix("[ds] "), expected, tmp_path)
    if running:
        assert content(disk.device) == disk.frozen()
        machine.power_off()
    leaf = machine.disk(KEY)
    qemu_same(folder / leaf.leaf, disk.frozen(), tmp_path)
    assert (
        len([name for name in files(folder / "vm") if not name.endswith(("-flat.vmdk", "-delta.vmdk"))]) == 3
    )
    machine.remove_all_snapshots()
    assert files(folder / "vm") == ["vm-flat.vmdk", "vm.vmdk"]
    qemu_same(folder / "vm" / "vm.vmdk", disk.frozen(), tmp_path)


@qemu
def test_a_revert_throws_away_what_came_after_and_branches_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    machine = new_machine(new_inventory(folder))
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    contents = build(machine, disk, 2)
    first, second = machine.snapshots()
    machine.revert_to_snapshot(first)
    assert not machine.powered_on
    assert machine.current_snapshot is first
    machine.power_on()
    other = Shadow(machine.disk(KEY).guest(), seed=7)
    assert content(other.device) == contents[0]
    other.content[:] = contents[0]
    other.scribble(10)
    third = machine.create_snapshot("branch")
    kept = other.frozen()
    other.scribble(10)
    assert third.parent is first
    assert first.children == [second, third]
    machine.remove_snapshot(first)
    assert machine.snapshot_roots == [second, third]
    for snapshot, expected in ((second, contents[1]), (third, kept)):
        qemu_same(folder / snapshot.disks[KEY].file.removeprefix("[ds] "), expected, tmp_path)
    assert content(other.device) == other.frozen()
    machine.remove_snapshot(second)
    machine.remove_snapshot(third)
    assert files(folder / "vm") == ["vm-flat.vmdk", "vm.vmdk"]
    assert content(other.device) == other.frozen()


def test_a_snapshot_with_memory_comes_back_running(tmp_path: Path) -> None:
    machine = new_machine(new_inventory(tmp_path / "ds"))
    machine.power_on()
    snapshot = machine.create_snapshot("live", memory=True)
    machine.revert_to_snapshot(snapshot)
    assert machine.powered_on
    machine.disk(KEY).guest().write_from(0, b"x" * 512)


def test_all_disks_freeze_at_one_moment_while_the_guest_writes(tmp_path: Path) -> None:
    machine = new_machine(new_inventory(tmp_path / "ds"), "vm", 4, 4)
    machine.power_on()
    one, two = (machine.disk(key).guest() for key in (2000, 2001))
    done = threading.Event()

    def guest() -> None:
        number = 0
        while not done.is_set():
            # The second disk never knows of a number that the first does not have yet.
            number += 1
            one.write_from(0, number.to_bytes(8, "little") * 64)
            two.write_from(0, number.to_bytes(8, "little") * 64)

    thread = threading.Thread(target=guest)
    thread.start()
    try:
        for number in range(5):
            snapshot = machine.create_snapshot(f"s{number}")
            seen = []
            for key in (2000, 2001):
                frozen = bytearray(512)
                name = snapshot.disks[key].file.removeprefix("[ds] ")
                with links.open_frozen(machine.datastore, name) as device:
                    device.read_into(0, frozen)
                seen.append(int.from_bytes(frozen[:8], "little"))
                assert frozen == frozen[:8] * 64
            assert seen[0] - seen[1] in (0, 1)
            machine.remove_snapshot(snapshot)
    finally:
        done.set()
        thread.join(30)
    assert not thread.is_alive()


def test_nothing_written_during_a_consolidation_is_lost(tmp_path: Path) -> None:
    inventory = new_inventory(tmp_path / "ds")
    machine = new_machine(inventory)
    machine.set_change_tracking(True)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(20)
    snapshot = machine.create_snapshot("backup")
    before = disk.frozen()
    saved = snapshot.disks[KEY].change_id
    disk.scribble(20)
    started, go_on = threading.Event(), threading.Event()

    def slow(event: str, _machine: Machine) -> None:
        if event == "consolidate":
            started.set()
            go_on.wait(30)

    inventory.hook = slow
    remover = threading.Thread(target=machine.remove_snapshot, args=(snapshot,))
    remover.start()
    assert started.wait(30)
    with pytest.raises(TaskInProgress):
        machine.create_snapshot("too early")
    disk.scribble(20)
    go_on.set()
    disk.scribble(20)
    remover.join(30)
    inventory.hook = lambda _event, _machine: None
    assert content(disk.device) == disk.frozen()
    second = machine.create_snapshot("second")
    changed = areas(machine, KEY, saved, second)
    assert not differing(before, disk.frozen()) - changed


def test_a_consolidation_that_fails_says_so_and_is_made_good_later(tmp_path: Path) -> None:
    inventory = new_inventory(tmp_path / "ds")
    machine = new_machine(inventory)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(10)
    snapshot = machine.create_snapshot("backup")
    disk.scribble(10)

    def failing(event: str, _machine: Machine) -> None:
        if event == "consolidate":
            raise GenericVmConfigFault("the storage is out of order")

    inventory.hook = failing
    with pytest.raises(GenericVmConfigFault):
        machine.remove_snapshot(snapshot)
    assert machine.consolidation_needed
    assert list(machine.snapshots()) == []
    disk.scribble(10)
    inventory.hook = lambda _event, _machine: None
    machine.consolidate()
    assert not machine.consolidation_needed
    assert machine.disk(KEY).file == "[ds] vm/vm.vmdk"
    assert content(disk.device) == disk.frozen()


def test_a_reader_of_the_frozen_disk_holds_the_consolidation_off(tmp_path: Path) -> None:
    inventory = new_inventory(tmp_path / "ds")
    machine = new_machine(inventory)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    snapshot = machine.create_snapshot("backup")
    disk.scribble(10)
    reader = diskaccess.open_for_reading(machine, machine.datastore, "vm/vm.vmdk")
    with pytest.raises(FileLocked):
        machine.remove_snapshot(snapshot)
    assert machine.consolidation_needed
    assert content(reader) == bytes(4 * MIB)
    with pytest.raises(FileLocked):
        machine.consolidate()
    assert machine.disk(KEY).file == "[ds] vm/vm-000001.vmdk"
    reader.close()
    machine.consolidate()
    assert content(disk.device) == disk.frozen()


def test_what_is_asked_wrongly_is_refused(tmp_path: Path) -> None:
    machine = new_machine(new_inventory(tmp_path / "ds"), "vm", 1)
    with pytest.raises(InvalidName):
        machine.create_snapshot("")
    with pytest.raises(Closed, match="does not run"):
        machine.disk(KEY).guest().write_from(0, bytes(512))
    snapshot = machine.create_snapshot("one")
    machine.remove_snapshot(snapshot)
    with pytest.raises(NotFound):
        machine.remove_snapshot(snapshot)
    with pytest.raises(NotFound):
        machine.revert_to_snapshot(snapshot)


def test_a_host_makes_no_more_than_32_snapshots_in_a_row(tmp_path: Path) -> None:
    machine = new_machine(new_inventory(tmp_path / "ds"), "vm", 1)
    for number in range(MAX_SNAPSHOT_DEPTH):
        machine.create_snapshot(f"s{number}")
    with pytest.raises(SnapshotFault):
        machine.create_snapshot("one more")
    machine.remove_all_snapshots()
    assert machine.disk(KEY).file == "[ds] vm/vm.vmdk"
