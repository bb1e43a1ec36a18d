"""A simulated host as pytest fixtures, loaded by pytest wherever vdkit is installed.

``simulated_host`` is an ESXi host with one machine, ``vm1``, made for one test. ``simulated_host_factory``
makes others: a vCenter, a host with a fault or of a scenario file, several at once.
``shared_simulated_host`` is made once for a whole run, for tests that change nothing. All of them listen on
loopback, on free ports, and have ended when their scope ends.

What is imported inside the fixtures is loaded only by the tests that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vdkit.sim.certificates import Certificate
    from vdkit.sim.host import SimulatedHost

#: The machine of ``simulated_host`` and the size of its disk in bytes.
MACHINE = "vm1"
DISK_BYTES = 64 << 20

HostFactory = Callable[..., "SimulatedHost"]


@pytest.fixture(scope="session")
def simulated_certificate() -> Certificate:
    """One certificate for all hosts of a run: making the key is what takes time."""
    from vdkit.sim.certificates import make_certificate

    return make_certificate()


def make_host(folder: Path, certificate: Certificate, *, machines: int, **options: Any) -> SimulatedHost:
    """A host, not started yet, whose one datastore is ``folder``, with ``machines`` machines of one disk."""
    from vdkit.sim.host import SimulatedHost
    from vdkit.sim.snapshot import DiskSpec

    folder.mkdir(parents=True, exist_ok=True)
    host = SimulatedHost([folder], certificate=certificate, **options)
    for number in range(1, machines + 1):
        host.inventory.create_machine(f"vm{number}", "datastore1", [DiskSpec(capacity=DISK_BYTES)])
    return host


@pytest.fixture
def simulated_host_factory(tmp_path: Path, simulated_certificate: Certificate) -> Iterator[HostFactory]:
    """``make(machines=1, **options)`` starts a host; the options are those of ``SimulatedHost``.

    ``make(scenario_file=path, **options)`` starts the host of a scenario file; the options are those of
    ``ScenarioFile.build``.
    """
    with ExitStack() as running:
        count = 0

        def make(
            *, machines: int = 1, scenario_file: str | Path | None = None, **options: Any
        ) -> SimulatedHost:
            nonlocal count
            if scenario_file is not None:
                from vdkit.sim.scenario_file import read_scenario

                options.setdefault("certificate", simulated_certificate)
                return running.enter_context(read_scenario(scenario_file).build(**options))
            count += 1
            folder = tmp_path / f"simulated-host-{count}"
            host = make_host(folder, simulated_certificate, machines=machines, **options)
            return running.enter_context(host)

        yield make


@pytest.fixture
def simulated_host(simulated_host_factory: HostFactory) -> SimulatedHost:
    """An ESXi host with the machine ``vm1``, powered off, its disk of 64 MiB empty."""
    return simulated_host_factory()


@pytest.fixture(scope="session")
def shared_simulated_host(
    tmp_path_factory: pytest.TempPathFactory, simulated_certificate: Certificate
) -> Iterator[SimulatedHost]:
    """As ``simulated_host``, for tests that only look."""
    folder = tmp_path_factory.mktemp("shared-simulated-host")
    with make_host(folder, simulated_certificate, machines=1) as host:
        yield host
