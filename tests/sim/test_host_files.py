"""Files of datastores over HTTPS, and the guest door."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from simclients import MIB, connection, soap_login

from vdkit.sim.host import SimulatedHost

QUERY = "?dcPath=ha-datacenter&dsName=datastore1"


class Wire:
    """One kept connection with basic authentication."""

    def __init__(self, host: SimulatedHost) -> None:
        self.connection = connection(host)
        token = base64.b64encode(f"{host.user}:{host.password.reveal()}".encode()).decode()
        self.headers = {"Authorization": f"Basic {token}"}

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, {**self.headers, **extra})  # type: ignore[arg-type]
        reply = self.connection.getresponse()
        return reply, reply.read()


@pytest.fixture
def wire(simulated_host: SimulatedHost) -> Iterator[Wire]:
    made = Wire(simulated_host)
    yield made
    made.connection.close()


def test_a_file_is_put_and_read_back(wire: Wire, simulated_host: SimulatedHost) -> None:
    data = bytes(range(256)) * 9000
    assert wire.ask("PUT", f"/folder/a%20b.bin{QUERY}", data)[0].status == 201
    assert wire.ask("PUT", f"/folder/a%20b.bin{QUERY}", data)[0].status == 200
    reply, content = wire.ask("GET", f"/folder/a%20b.bin{QUERY}")
    assert (reply.status, content) == (200, data)
    reply, content = wire.ask("HEAD", f"/folder/a%20b.bin{QUERY}")
    assert (reply.getheader("Content-Length"), content) == (str(len(data)), b"")
    store = simulated_host.inventory.datastore("datastore1").store
    assert "a b.bin" in store.list()
    assert not [name for name in store.list() if "uploading" in name]


def test_an_upload_in_chunks(wire: Wire) -> None:
    pieces = [b"one", b"two" * 100_000, b"", b"three"]
    assert wire.ask("PUT", f"/folder/chunked{QUERY}", iter(pieces))[0].status == 201
    assert wire.ask("GET", f"/folder/chunked{QUERY}")[1] == b"".join(pieces)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-9", 0, 10), ("5-5", 5, 6), ("990-", 990, 1000), ("-10", 990, 1000), ("900-5000", 900, 1000)],
)
def test_ranges(asked: str, start: int, end: int, wire: Wire) -> None:
    data = bytes(number % 251 for number in range(1000))
    wire.ask("PUT", f"/folder/x{QUERY}", data)
    reply, content = wire.ask("GET", f"/folder/x{QUERY}", Range=f"bytes={asked}")
    assert (reply.status, content) == (206, data[start:end])
    assert reply.getheader("Content-Range") == f"bytes {start}-{end - 1}/1000"


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=5-4", "bytes=-", "bytes=0-1,3-4", "lines=1-2"])
def test_ranges_that_cannot_be(asked: str, wire: Wire) -> None:
    wire.ask("PUT", f"/folder/x{QUERY}", bytes(1000))
    assert wire.ask("GET", f"/folder/x{QUERY}", Range=asked)[0].status == 416


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "a/../../outside",
        "/etc/passwd",
        "%2e%2e/outside",
        "a%00b",
        "..%2foutside",
        "a//b/../../../c",
    ],
)
def test_nothing_leads_out_of_the_datastore(path: str, wire: Wire, simulated_host: SimulatedHost) -> None:
    folder = simulated_host.inventory.datastore("datastore1").folder
    assert folder is not None
    (folder.parent / "outside").write_bytes(b"not yours")
    for method in ("GET", "HEAD", "PUT"):
        reply, content = wire.ask(method, f"/folder/{path}{QUERY}", b"x" if method == "PUT" else None)
        assert reply.status in (400, 403, 404) or (method == "PUT" and reply.status == 201)
        assert b"not yours" not in content
    assert (folder.parent / "outside").read_bytes() == b"not yours"


def test_a_link_out_of_the_datastore_is_not_followed(wire: Wire, simulated_host: SimulatedHost) -> None:
    folder = simulated_host.inventory.datastore("datastore1").folder
    assert folder is not None
    (folder.parent / "outside").write_bytes(b"not yours")
    (folder / "link").symlink_to(folder.parent / "outside")
    reply, content = wire.ask("GET", f"/folder/link{QUERY}")
    assert reply.status in (400, 403, 404)
    assert b"not yours" not in content


def test_what_is_not_there(wire: Wire) -> None:
    assert wire.ask("GET", f"/folder/nothing{QUERY}")[0].status == 404
    assert wire.ask("GET", "/folder/x?dsName=nowhere")[0].status == 404
    assert wire.ask("GET", "/nothing")[0].status == 404
    assert wire.ask("DELETE", f"/folder/x{QUERY}")[0].status == 405


def test_listings(wire: Wire) -> None:
    assert b"datastore1" in wire.ask("GET", "/folder")[1]
    assert b"vm1/" in wire.ask("GET", f"/folder{QUERY}")[1]
    assert b"vm1.vmdk" in wire.ask("GET", f"/folder/vm1/{QUERY}")[1]


def test_authentication(simulated_host: SimulatedHost) -> None:
    wire = connection(simulated_host)
    path = f"/folder/vm1/vm1.vmdk{QUERY}"
    wrong = base64.b64encode(b"root:wrong").decode()
    for headers in (
        {},
        {"Authorization": f"Basic {wrong}"},
        {"Authorization": "Basic ???"},
        {"Cookie": "x=1"},
    ):
        for place in (path, "/guest/1/2000"):
            wire.request("GET", place, headers=headers)
            reply = wire.getresponse()
            assert (reply.status, reply.read()[:6]) == (401, b"log in")
    wire.request("GET", path, headers={"Cookie": soap_login(simulated_host)})
    reply = wire.getresponse()
    assert reply.status == 200
    assert b"# Disk DescriptorFile" in reply.read()
    wire.close()


def test_files_of_a_running_machine_are_locked(wire: Wire, simulated_host: SimulatedHost) -> None:
    machine = simulated_host.machine("vm1")
    flat = f"/folder/vm1/vm1-flat.vmdk{QUERY}"
    assert wire.ask("GET", flat, Range="bytes=0-9")[0].status == 206
    machine.power_on()
    # A host waits a moment for somebody who is about to let go; nobody is here.
    machine.datastore.locks.patience = 0
    for path in (flat, f"/folder/vm1/vm1.vmdk{QUERY}"):
        reply, content = wire.ask("GET", path)
        assert (reply.status, b"locked" in content) == (500, True)
        assert wire.ask("PUT", path, b"x")[0].status == 500
    machine.create_snapshot("s")
    # On a host a running machine's base is held for reading by the machine alone.
    assert wire.ask("GET", flat)[0].status == 500
    machine.power_off()
    assert wire.ask("GET", flat, Range="bytes=0-9")[0].status == 206


def test_a_download_holds_the_file_only_while_it_lasts(wire: Wire, simulated_host: SimulatedHost) -> None:
    machine = simulated_host.machine("vm1")
    wire.ask("GET", f"/folder/vm1/vm1-flat.vmdk{QUERY}")
    wire.ask("GET", f"/folder/vm1/vm1-flat.vmdk{QUERY}", Range="bytes=99999999999-")
    machine.power_on()
    machine.power_off()


def test_the_folder_may_fail(wire: Wire, simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.folder_status = 503
    assert wire.ask("GET", f"/folder/vm1/vm1.vmdk{QUERY}")[0].status == 503


def test_the_guest_door(wire: Wire, simulated_host: SimulatedHost) -> None:
    machine = simulated_host.machine("vm1")
    machine.set_change_tracking(True)
    door = "/guest/1/2000"
    assert wire.ask("GET", door)[0].status == 409
    machine.power_on()
    size = 64 * MIB
    assert wire.ask("HEAD", door)[0].getheader("Content-Length") == str(size)
    data = b"guest!" * 50_000
    where = f"bytes {3 * MIB}-{3 * MIB + len(data) - 1}/{size}"
    before = machine.disk(2000).change_id
    machine.create_snapshot("s")
    assert wire.ask("PUT", door, data, Content_Range=where)[0].status == 204
    reply, content = wire.ask("GET", door, Range=f"bytes={3 * MIB}-{3 * MIB + len(data) - 1}")
    assert (reply.status, content) == (206, data)
    assert before is not None
    machine.create_snapshot("t")
    areas = machine.changed_areas(2000, 0, before, machine.current_snapshot).areas
    assert areas == [(3 * MIB, 5 * 65536)]


@pytest.mark.parametrize(
    ("content_range", "status"),
    [
        (None, 400),
        ("bytes 0-9", 400),
        ("bytes 0-2/67108864", 400),
        ("bytes 0-8/67108864", 400),
        ("bytes 0-3/1000", 409),
        ("bytes 67108864-67108867/*", 416),
        ("bytes 3-0/*", 416),
    ],
)
def test_guest_writes_that_do_not_fit(
    content_range: str | None, status: int, wire: Wire, simulated_host: SimulatedHost
) -> None:
    simulated_host.machine("vm1").power_on()
    headers = {} if content_range is None else {"Content_Range": content_range}
    assert wire.ask("PUT", "/guest/1/2000", b"1234", **headers)[0].status == status


def test_guest_doors_that_are_none(wire: Wire, simulated_host: SimulatedHost) -> None:
    simulated_host.machine("vm1").power_on()
    for path in ("/guest/77/2000", "/guest/1", "/guest/1/x", f"/guest/{quote('a/b', safe='')}/2000"):
        assert wire.ask("GET", path)[0].status == 404
    assert wire.ask("GET", "/guest/1/2001")[0].status == 400
    assert wire.ask("POST", "/guest/1/2000")[0].status == 405
