"""A backup killed at any moment: complete points stay, no half point shows, the next run works and tidies up.

The host runs in this process; each backup is the real command in a process of its own, killed with SIGKILL
after a random time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdkit.backup import Repository, open_point, verify
from vdkit.block.local import FolderStore
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory

MIB = 1 << 20
KILLS = 10


def _command(host: SimulatedHost, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vdkit", *arguments],
        env={**os.environ, **host.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def _content(repository: Repository, point_id: str) -> bytes:
    with open_point(repository, repository.find(point_id), 2000) as device:
        data = bytearray(device.capacity)
        device.read_into(0, data)
    return bytes(data)


def test_backups_killed_at_random_moments(simulated_host_factory: HostFactory, tmp_path: Path) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    machine = host.machine("vm1")
    disk = machine.disk(2000).guest()
    model = bytearray(disk.capacity)
    moments = random.Random(20)
    folder = tmp_path / "repo"

    def scribble() -> None:
        for _ in range(40):
            length = 512 * moments.randint(1, 400)
            offset = 512 * moments.randrange((len(model) - length) // 512)
            data = moments.randbytes(length)
            disk.write_from(offset, data)
            model[offset : offset + length] = data

    scribble()
    begun = time.monotonic()
    _finish(_command(host, "backup", "vm1", "--to", str(folder)))
    usual = time.monotonic() - begun
    repository = Repository.open(FolderStore(folder))
    wanted = {repository.points()[0].id: bytes(model)}
    interrupted = 0
    for _ in range(KILLS):
        scribble()
        process = _command(host, "backup", "vm1", "--to", str(folder), "--json")
        # Spread over the whole life of a run, its start-up included.
        time.sleep(moments.uniform(0.2, 1.1) * usual)
        process.kill()
        process.communicate(timeout=60)
        interrupted += process.returncode != 0
        complete = {point.id for point in repository.points()}
        assert complete >= set(wanted)
        for new in complete - set(wanted):
            # Killed after the point was committed: it must be whole.
            wanted[new] = bytes(model)
        assert len(list(machine.snapshots())) <= 1
    assert interrupted
    out = _finish(_command(host, "backup", "vm1", "--to", str(folder), "--json"))
    last = json.loads(out.splitlines()[-1])["point"]["id"]
    wanted[last] = bytes(model)
    assert {point.id for point in repository.points()} == set(wanted)
    assert all(_content(repository, point_id) == content for point_id, content in wanted.items())
    assert verify(repository).ok
    assert list(machine.snapshots()) == []
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("signal_number", [2, 15])
def test_an_interrupted_backup_tidies_up_at_once(
    simulated_host_factory: HostFactory, tmp_path: Path, signal_number: int
) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    folder = tmp_path / "repo"
    host.scenario.task_seconds = {"CreateSnapshot_Task": 0.5}
    process = _command(host, "backup", "vm1", "--to", str(folder))
    deadline = time.monotonic() + 60
    while not list(host.machine("vm1").snapshots()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:
        assert process.returncode == 130, err
        assert "interrupted" in err
        assert not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".vmdk"))]
    assert list(host.machine("vm1").snapshots()) == []
