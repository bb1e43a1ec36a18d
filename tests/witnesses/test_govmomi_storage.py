"""govmomi clones, marks templates and keeps first-class disks on the simulated vCenter; its own simulator in
turn is asked by our client for machines by file, for a session by its cookie, and for first-class disks.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from pyVmomi import vim

import gotools
from vdkit.errors import ObjectNotFound, SessionExpired
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import fcd, tasks
from vdkit.vsphere.inventory import find_machine, list_machines
from vdkit.vsphere.session import Session

pytestmark = pytest.mark.witness("go", "govmomi")


def test_govmomi_clones_and_keeps_disks(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(personality="vcenter")
    machine = host.machine("vm1")
    machine.create_snapshot("base")
    done = subprocess.run(
        [str(gotools.build("storage")), "-vm=vm1"],
        env={**os.environ, **host.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    disk = said.pop("disk")
    assert disk.startswith("[datastore1] fcd/")
    assert said == {
        "parents": ["[datastore1] vm1/vm1.vmdk"],
        "fullParents": 0,
        "template": True,
        "templateFile": "[datastore1] full/full.vmtx",
        "templatePool": False,
        "templatePowersOn": False,
        "machineAgain": True,
        "size": 8,
        "listed": ["made"],
        "consumers": [machine.config.instance_uuid],
        "byFile": True,
        "gone": True,
    }
    assert host.internal_errors == []


@pytest.fixture(scope="module")
def server() -> Iterator[gotools.Vcsim]:
    with gotools.vcsim() as running:
        yield running


@pytest.fixture
def session(server: gotools.Vcsim) -> Iterator[Session]:
    trust = Trust(sha1=server.sha1)
    with Session.login(server.host, server.port, server.user, Secret(server.password), trust) as session:
        yield session


def test_machines_by_their_file(session: Session) -> None:
    wanted = list_machines(session)[0]
    assert wanted.vmx is not None
    store, _, path = wanted.vmx.removeprefix("[").partition("] ")
    for text in (wanted.vmx, f"{path}?dcPath=DC0&dsName={store}", f"{path}?dsName={store}"):
        assert find_machine(session, text).moref == wanted.moref
    with pytest.raises(ObjectNotFound):
        find_machine(session, f"{path}x.vmx?dcPath=DC0&dsName={store}")


def test_the_cookie_of_a_session(server: gotools.Vcsim, session: Session) -> None:
    cookie, trust = Secret(session.stub.GetSessionId()), Trust(sha1=server.sha1)
    with Session.from_cookie(server.host, server.port, cookie, trust) as adopted:
        assert adopted.user == server.user
        assert list_machines(adopted) == list_machines(session)
    assert list_machines(session)
    with pytest.raises(SessionExpired):
        Session.from_cookie(server.host, server.port, Secret("0-0"), trust)


def test_first_class_disks(session: Session) -> None:
    store = session.content.rootFolder.childEntity[0].datastore[0]
    backing = vim.vslm.CreateSpec.DiskFileBackingSpec(datastore=store, provisioningType="thin")
    spec = vim.vslm.CreateSpec(name="data", capacityInMB=8, backingSpec=backing)
    manager = session.content.vStorageObjectManager
    made = tasks.run(session, "make a disk", lambda: manager.CreateDisk_Task(spec)).config
    known = fcd.get_disk(session, fcd.DiskSpec(made.id.id, store.name))
    assert (known.id, known.name, known.capacity) == (made.id.id, "data", 8 << 20)
    assert known.file == made.backing.filePath
    assert known.datastore == store._GetMoId()
    assert made.id.id in fcd.list_disks(session, store._GetMoId())
    assert fcd.machine_of(session, known) is None
    with pytest.raises(ObjectNotFound):
        fcd.get_disk(session, fcd.DiskSpec("no-such-disk", store.name))
