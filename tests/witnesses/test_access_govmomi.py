"""Disabled methods as govmomi's client asks for them, and our calls to a server that has none."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import gotools
from vdkit.errors import NotSupported
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import access
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.session import Session

pytestmark = pytest.mark.witness("go", "govmomi")


@pytest.fixture
def center(simulated_host_factory: HostFactory, tmp_path: Path) -> SimulatedHost:
    host = simulated_host_factory(personality="vcenter")
    (tmp_path / "second").mkdir()
    host.inventory.add_folder(tmp_path / "second", "datastore2")
    return host


def run(host: SimulatedHost, *arguments: str) -> dict[str, Any]:
    program = gotools.build("access")
    done = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **host.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def sources(host: SimulatedHost) -> list[str]:
    assert host.world is not None
    return host.world.disabled.sources(("VirtualMachine", host.machine("vm1").moref), "RelocateVM_Task")


def test_govmomi_disables_enables_and_relocates(center: SimulatedHost) -> None:
    said = run(center, "-datastore=datastore2")
    assert said["disabled"] == ["RelocateVM_Task"]
    assert said["source"] == "govmomi"
    assert said["other"] == ["RelocateVM_Task"]
    assert said["after"] is None
    assert said["file"] == "[datastore2] vm1/vm1.vmdk"
    assert said["has"] == [True, True]
    assert center.internal_errors == []


def test_govmomi_is_told_that_the_machine_is_busy(center: SimulatedHost) -> None:
    center.scenario.relocating = frozenset({"vm1"})
    assert run(center, "-datastore=datastore2")["busy"]


def test_what_govmomi_left_disabled_is_ended_by_our_call_with_its_name(center: SimulatedHost) -> None:
    run(center, "-keep", "-source=crashed product")
    assert sources(center) == ["crashed product"]
    trust = Trust(sha256=center.thumbprint_sha256)
    with Session.login(center.host, center.port, center.user, center.password, trust) as session:
        (vm,) = list_machines(session)
        assert access.is_relocation_disabled(session, vm)
        access.end_access(session, vm, "vdkit")
        assert sources(center) == ["crashed product"]
        access.end_access(session, vm, "crashed product")
        assert not access.is_relocation_disabled(session, vm)


def test_a_server_without_these_calls_is_told_apart() -> None:
    """govmomi's own simulator is a vCenter that does not know them."""
    with gotools.vcsim(machines=1) as server:
        trust = Trust(sha1=server.sha1)
        password = Secret(server.password)
        with Session.login(server.host, server.port, server.user, password, trust) as session:
            vm = list_machines(session)[0]
            with pytest.raises(NotSupported):
                access.prepare_for_access(session, vm, "vdkit")
            said: list[str] = []
            with access.access(session, vm, "vdkit", without=said.append) as really:
                assert not really
            assert len(said) == 1
            assert not access.is_relocation_disabled(session, vm)
