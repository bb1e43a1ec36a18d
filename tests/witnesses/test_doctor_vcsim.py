"""The doctor looks at govmomi's own simulator: another server, which must not surprise it."""

from __future__ import annotations

import pytest

import gotools
from vdkit.errors import ConnectionRefused
from vdkit.jobs.doctor import examine
from vdkit.jobs.findings import DiskVerdict, Go, Severity
from vdkit.net.fingerprints import Fingerprints
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.privileges import Use
from vdkit.vsphere.session import Session


@pytest.mark.witness("go", "govmomi")
@pytest.mark.parametrize("esx", [True, False], ids=["esx", "vcenter"])
def test_the_doctor_looks_at_another_server(esx: bool) -> None:
    asked: set[tuple[str, int]] = set()

    def probe(host: str, port: int, *, greeting: bool | None, timeout: float) -> Fingerprints:
        asked.add((host, port))
        raise ConnectionRefused(f"{host}:{port}: refused")

    with gotools.vcsim(esx=esx, machines=1) as server:
        trust, password = Trust(sha1=server.sha1), Secret(server.password)
        with Session.login(server.host, server.port, server.user, password, trust) as session:
            vm = next(one for one in list_machines(session) if esx or "_C0_" in one.name)
            report = examine(session, vm.name, uses=list(Use), probe=probe)
    assert (report.machine, report.moref, report.path) == (vm.name, vm.moref, vm.path)
    assert report.go is Go.NO
    assert [disk.verdict for disk in report.disks] == [DiskVerdict.WILL_START]
    checks = {finding.check: finding.severity for finding in report.findings}
    assert checks["server.clock"] is Severity.GOOD
    assert checks["server.sessions"] is Severity.GOOD
    assert checks["account.privileges"] is Severity.GOOD
    # It has no service that gives tickets.
    assert checks["host.ticket"] is Severity.PROBLEM
    assert "doctor.failed" not in checks
    if esx:
        assert asked == {(server.host, server.port), (server.host, 902)}
    else:
        # All three hosts of the cluster, as each sees the one datastore.
        assert len({host for host, _ in asked}) == 3
        assert {port for _, port in asked} == {443, 902}
