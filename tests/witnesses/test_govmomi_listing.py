"""govmomi's client lists the hosts of a simulated vCenter and hundreds of machines in folders."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import gotools
from nfctools import certificate
from vdkit.sim.scenario_file import read_scenario

MANY = 300


@pytest.mark.witness("go", "govmomi")
def test_govmomi_lists_hosts_and_hundreds_of_machines(tmp_path: Path) -> None:
    program = gotools.build("listing")
    path = tmp_path / "many.toml"
    path.write_text(
        f'[host]\npersonality = "vcenter"\nhosts = 3\n[[machine]]\nname = "vm"\ncount = {MANY}\n'
        'folder = "clients/berlin"\n[[machine.disk]]\nsize = "64 MiB"\n[[machine]]\nname = "alone"\n'
        'host = "esx3.localdomain"\n',
        encoding="utf-8",
    )
    with read_scenario(path).build(certificate=certificate()) as host:
        done = subprocess.run(
            [str(program)],
            env={**os.environ, **host.environment()},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        places = host.inventory.places
        hosts = [one.name for one in places.hosts]
        wanted = {
            name: sorted(vm.name for vm in host.inventory.machines if places.host_of(vm).name == name)
            for name in hosts
        }
        assert {name: sorted(found) for name, found in seen["byMachine"].items()} == wanted
        assert seen["byHost"] == {name: len(found) for name, found in wanted.items()}
        assert sorted(len(found) for found in wanted.values()) == [100, 100, 101]
        assert "alone" in wanted["esx3.localdomain"]
        assert seen["thumbprints"] == {name: host.data_port(name).thumbprint for name in hosts}
        numbered = [f"/Datacenter/vm/clients/berlin/vm-{number:03}" for number in range(1, MANY + 1)]
        assert sorted(seen["paths"]) == sorted(["/Datacenter/vm/alone", *numbered])
        assert host.internal_errors == []
