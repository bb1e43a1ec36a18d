"""The host is killed at many steps of an operation; what comes up again holds every acknowledged byte."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_helpers import Shadow, content, new_inventory, new_machine

from vdkit.block.local import FolderStore
from vdkit.sim import links
from vdkit.sim.machine import Machine

KEY = 2000
#: No operation here touches its store more often.
MOST_STEPS = 400


def prepare(folder: Path, seed: int) -> tuple[list[bytes], bytes]:
    """A machine that ran, with three snapshots; what they and the running disk hold."""
    inventory = new_inventory(folder)
    machine = new_machine(inventory, "vm", 1)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest(), seed)
    frozen = []
    for number in range(3):
        disk.scribble(4)
        frozen.append(disk.frozen())
        machine.create_snapshot(f"s{number}")
    disk.scribble(4)
    inventory.close()
    return frozen, disk.frozen()


def killed_at(step: int, folder: Path, work: Callable[[Machine], None]) -> bool:
    """Run ``work`` in a process killed before its ``step``-th change of the store; False if it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            left = step

            def counted(method: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **more: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return method(*args, **more)

                return call

            machine = new_inventory(folder).find("vm")
            for name in ("create", "rename", "remove", "open_writable"):
                setattr(FolderStore, name, counted(getattr(FolderStore, name)))
            work(machine)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def check(folder: Path, frozen: list[bytes], last: bytes) -> None:
    inventory = new_inventory(folder)
    assert inventory.skipped == []
    machine = inventory.find("vm")
    assert content(machine.disk(KEY).guest()) == last
    for snapshot in machine.snapshots():
        if snapshot.name in ("s0", "s1", "s2"):
            name = snapshot.disks[KEY].file.removeprefix("[ds] ")
            with links.open_frozen(machine.datastore, name) as device:
                assert content(device) == frozen[int(snapshot.name[1])]
    # And it goes on as if nothing had been.
    machine.create_snapshot("after")
    machine.remove_all_snapshots()
    assert machine.disk(KEY).file == "[ds] vm/vm.vmdk"
    assert content(machine.disk(KEY).guest()) == last
    inventory.close()


@pytest.mark.parametrize(
    ("name", "stride", "work"),
    [
        ("create", 1, lambda machine: machine.create_snapshot("new")),
        ("remove the first", 2, lambda machine: machine.remove_snapshot(next(machine.snapshots()))),
        ("remove the last", 3, lambda machine: machine.remove_snapshot(list(machine.snapshots())[-1])),
        ("remove all", 7, lambda machine: machine.remove_all_snapshots()),
    ],
)
def test_a_host_killed_in_the_middle_comes_up_with_all_that_was_written(
    tmp_path: Path, name: str, stride: int, work: Callable[[Machine], None]
) -> None:
    frozen, last = prepare(tmp_path / "ds", seed=len(name))
    for step in range(0, MOST_STEPS, stride):
        folder = copied(tmp_path / "ds", tmp_path / f"at{step}")
        killed = killed_at(step, folder, work)
        try:
            check(folder, frozen, last)
        except BaseException as error:
            raise AssertionError(f"killed before change {step} of the store: {error}") from error
        if not killed:
            break
    else:
        raise AssertionError("the operation never ended")
