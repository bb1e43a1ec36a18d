"""What the doctor says of odd machines, and what a backup of them then really does: they agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from job_helpers import Listener, new_repository, session_of, snapshots_left

from vdkit.errors import ExitCode, ModeUnavailable, VixError
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.doctor import examine
from vdkit.sim.controllers import Controller, DiskOptions
from vdkit.sim.host import SimulatedHost
from vdkit.sim.snapshot import DiskSpec, MachineConfig
from vdkit.testing.fixtures import HostFactory

pytestmark = pytest.mark.usefixtures("no_leaks")
MIB = 1 << 20
PLAIN = DiskSpec(capacity=MIB)
INDEPENDENT = DiskSpec(capacity=MIB, options=DiskOptions(mode="independent_persistent"))
PHYSICAL = DiskSpec(capacity=MIB, options=DiskOptions(mapping="physicalMode"))
SHARED = DiskSpec(capacity=MIB, options=DiskOptions(sharing="sharingMultiWriter"))
SIXTY = [
    DiskSpec(capacity=MIB, controller=Controller(number=number)) for number in range(4) for _ in range(15)
]


def both(host: SimulatedHost, name: str, folder: Path) -> tuple[int, int]:
    """The code of the doctor, and that of a backup: as the commands end."""
    with session_of(host) as session:
        said = examine(session, name).exit_code
        assert not host.machine(name).config.change_tracking, "the doctor changes nothing"
        try:
            result = backup_machine(session, name, new_repository(folder), Listener())
        except VixError as error:
            return said, error.exit_code
    return said, ExitCode.SOURCE_INCOMPLETE if result.skipped else ExitCode.OK


@pytest.mark.parametrize(
    ("disks", "code"),
    [
        ([], ExitCode.CONTROL),
        ([INDEPENDENT], ExitCode.CONTROL),
        ([PHYSICAL, INDEPENDENT], ExitCode.CONTROL),
        ([PLAIN, SHARED], ExitCode.CONTROL),
        ([PLAIN, INDEPENDENT, PHYSICAL], ExitCode.SOURCE_INCOMPLETE),
        (SIXTY, ExitCode.OK),
    ],
    ids=["none", "independent", "none held", "shared", "some", "sixty"],
)
def test_they_agree(
    simulated_host_factory: HostFactory, tmp_path: Path, disks: Sequence[DiskSpec], code: int
) -> None:
    host = simulated_host_factory(machines=0)
    name = "wéb %2f/a\\b 日本"
    host.inventory.create_machine(name, "datastore1", disks)
    assert both(host, name, tmp_path / "repo") == (code, code)
    assert snapshots_left(host, name) == []
    assert host.internal_errors == []


def test_what_no_snapshot_holds_is_told_before_anything_is_changed(
    simulated_host_factory: HostFactory, tmp_path: Path
) -> None:
    host = simulated_host_factory(machines=0)
    host.inventory.create_machine("odd", "datastore1", [INDEPENDENT])
    encrypted = DiskSpec(capacity=MIB, options=DiskOptions(key_id="a key"))
    config = MachineConfig(**{**vars(MachineConfig.new("secret")), "key_id": "a key"})
    host.inventory.create_machine("secret", "datastore1", [encrypted], config=config)
    made: list[str] = []
    outer = host.inventory.hook

    def hook(event: str, machine: object) -> None:
        made.append(event)
        outer(event, machine)  # type: ignore[arg-type]

    host.inventory.hook = hook
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        with pytest.raises(VixError, match="no disk that a snapshot can hold"):
            backup_machine(session, "odd", repository, Listener())
        with pytest.raises(ModeUnavailable, match="encrypted"):
            backup_machine(session, "secret", repository, Listener(), modes="nbd")
    assert made == []
    assert not host.machine("secret").config.change_tracking
