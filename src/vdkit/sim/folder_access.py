"""``/folder`` of a host: files of datastores over HTTPS. And ``/guest``: a control door of the simulator.

``/folder/<path>?dcPath=<datacenter>&dsName=<datastore>`` serves GET with ranges, HEAD, and PUT. A file that
a running machine holds answers 500, as a host does. ``/guest/<machine>/<device key>`` is not part of a real
host: through it an outside process does I/O as the guest of a running machine, past its change tracking.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.store import replacing
from vdkit.errors import (
    AccessDenied,
    Closed,
    DiskFull,
    FileLocked,
    NotFound,
    OutOfRange,
    OutsideStore,
    VixError,
)
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import InvalidArgument, InvalidDatastorePath, ManagedObjectNotFound
from vdkit.sim.https import HttpRequest, HttpResponse
from vdkit.sim.locks import FileLock, Locked, LockMode

if TYPE_CHECKING:
    from vdkit.sim.inventory import Inventory

_PIECE = 1 << 20
_HOLDER = "a download or upload over /folder"
_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")
_CONTENT_RANGE = re.compile(r"^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$")
_OCTETS = ("Content-Type", "application/octet-stream")


class HttpFault(Exception):
    """A request that is refused with a status and one line of text."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def refusal(fault: HttpFault) -> HttpResponse:
    return HttpResponse(fault.status, [("Content-Type", "text/plain")], f"{fault.reason}\n".encode())


def from_error(error: VixError) -> HttpFault:
    """The status for an error of the model or of a store."""
    match error:
        case NotFound() | ManagedObjectNotFound() | InvalidDatastorePath():
            return HttpFault(HTTPStatus.NOT_FOUND, str(error))
        case OutsideStore() | InvalidArgument():
            return HttpFault(HTTPStatus.BAD_REQUEST, str(error))
        case AccessDenied():
            return HttpFault(HTTPStatus.FORBIDDEN, str(error))
        case OutOfRange():
            return HttpFault(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, str(error))
        case DiskFull():
            return HttpFault(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        case FileLocked() | Closed():
            return HttpFault(HTTPStatus.CONFLICT, str(error))
        case _:
            return HttpFault(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


class FolderAccess:
    """Serves requests whose sender has been authenticated."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    # -- /folder ---------------------------------------------------------------------------------

    def folder(self, request: HttpRequest) -> HttpResponse:
        path = unquote(request.path.removeprefix("/folder")).strip("/")
        names = parse_qs(request.query).get("dsName", [])
        if not names:
            return self._datastores()
        datastore = self._inventory.datastore(names[0])
        if request.method == "PUT":
            return self._upload(request, datastore, path)
        if not path or self._is_folder(datastore, path):
            return self._listing(datastore, path)
        return self._download(request, datastore, path)

    def _is_folder(self, datastore: Datastore, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        return f"{name}/" in datastore.files(parent)

    def _datastores(self) -> HttpResponse:
        names = [datastore.name for datastore in self._inventory.datastores]
        return _index("/folder", [(name, f"/folder?dsName={quote(name)}") for name in names])

    def _listing(self, datastore: Datastore, path: str) -> HttpResponse:
        query = f"?dcPath={quote(self._inventory.datacenter.name)}&dsName={quote(datastore.name)}"
        folder = f"{path}/" if path else ""
        names = [(name, f"/folder/{quote(folder + name)}{query}") for name in datastore.files(path)]
        return _index(datastore.path(path), names)

    def _lock(self, datastore: Datastore, path: str, mode: LockMode) -> FileLock:
        """The file, and for the data of a running disk what its machine holds: its descriptor's lock."""
        wanted = [(path, mode)]
        descriptor = re.sub(r"-(?:flat|delta|sesparse|s\d{3}|f\d{3})\.vmdk$", ".vmdk", path)
        if descriptor != path and datastore.exists(descriptor):
            wanted.append((descriptor, mode))
        try:
            return datastore.locks.acquire(wanted, _HOLDER)
        except Locked as error:
            raise HttpFault(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"{datastore.path(path)} is locked: {error}"
            ) from error

    def _download(self, request: HttpRequest, datastore: Datastore, path: str) -> HttpResponse:
        if request.method == "HEAD":
            with datastore.store.open(path) as device:
                return HttpResponse(headers=[_OCTETS, ("Accept-Ranges", "bytes")], length=device.capacity)
        lock = self._lock(datastore, path, LockMode.BROWSE)
        try:
            device = datastore.store.open(path)
        except VixError:
            lock.release()
            raise
        return _ranged(request, device, lock)

    def _upload(self, request: HttpRequest, datastore: Datastore, path: str) -> HttpResponse:
        """The whole file is replaced; the old one stays until the new one is complete."""
        if not path:
            raise HttpFault(HTTPStatus.BAD_REQUEST, "a file to write must be named")
        fresh = f"{path}.uploading"
        store = datastore.store
        existed = datastore.exists(path)
        with (
            self._lock(datastore, path, LockMode.WRITE),
            replacing(store, path, fresh),
            store.create(fresh, request.body.length or 0) as target,
        ):
            _fill(target, request)
        return HttpResponse(HTTPStatus.OK if existed else HTTPStatus.CREATED)

    # -- /guest ----------------------------------------------------------------------------------

    def guest(self, request: HttpRequest) -> HttpResponse:
        found = re.fullmatch(r"/guest/([^/]{1,100})/(\d{1,9})", unquote(request.path))
        if found is None:
            raise HttpFault(HTTPStatus.NOT_FOUND, "expected /guest/<machine id>/<device key>")
        machine = self._inventory.machine(found[1])
        disk = machine.disk(int(found[2]))
        if not machine.powered_on:
            raise HttpFault(HTTPStatus.CONFLICT, f"the machine {machine.name} does not run")
        device = disk.guest()
        match request.method:
            case "GET" | "HEAD":
                return _ranged(request, device, None)
            case "PUT":
                return _write_range(request, device)
            case _:
                raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not served here")


def _index(title: str, entries: list[tuple[str, str]]) -> HttpResponse:
    rows = "".join(
        f'<li><a href="{html.escape(link)}">{html.escape(name)}</a></li>\n' for name, link in entries
    )
    body = f"<html><head><title>{html.escape(title)}</title></head><body><ul>\n{rows}</ul></body></html>\n"
    return HttpResponse(headers=[("Content-Type", "text/html; charset=utf-8")], body=body.encode())


def _fill(target: WritableDevice, request: HttpRequest) -> None:
    offset = 0
    for piece in request.body.pieces():
        if offset + len(piece) > target.capacity:
            target.resize(max(offset + len(piece), min(target.capacity * 2, offset + (64 << 20))))
        target.write_from(offset, piece)
        offset += len(piece)
    if target.capacity != offset:
        target.resize(offset)
    target.flush()


def _ranged(request: HttpRequest, device: BlockDevice, lock: FileLock | None) -> HttpResponse:
    """The device, or the one range of it that is asked for; it is closed, and the lock let go, at the end."""
    size = device.capacity
    headers = [_OCTETS, ("Accept-Ranges", "bytes")]
    start, end, status = 0, size, HTTPStatus.OK
    asked = request.headers.get("range")
    if asked is not None:
        try:
            start, end = _parse_range(asked, size)
        except HttpFault:
            _let_go(device, lock)
            raise
        status = HTTPStatus.PARTIAL_CONTENT
        headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
    if request.method == "HEAD":
        _let_go(device, lock)
        return HttpResponse(status, headers, length=end - start)
    return HttpResponse(status, headers, pieces=_Pieces(device, lock, start, end), length=end - start)


def _let_go(device: BlockDevice, lock: FileLock | None) -> None:
    device.close()
    if lock is not None:
        lock.release()


class _Pieces:
    """Reads a range piece by piece. ``close`` is called when the reply was sent, or could not be."""

    def __init__(self, device: BlockDevice, lock: FileLock | None, start: int, end: int) -> None:
        self._device = device
        self._lock = lock
        self._start = start
        self._end = end

    def __iter__(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_PIECE, max(1, self._end - self._start))))
        position = self._start
        while position < self._end:
            view = buffer[: min(len(buffer), self._end - position)]
            self._device.read_into(position, view)
            yield view
            position += len(view)

    def close(self) -> None:
        _let_go(self._device, self._lock)


def _parse_range(text: str, size: int) -> tuple[int, int]:
    """Half-open bounds of a single range; several are refused. Raises 416."""
    found = _RANGE.match(text.replace(" ", ""))
    if found is None or not (found[1] or found[2]):
        raise HttpFault(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"range {text[:80]!r} is not one range")
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
    if start >= end:
        raise HttpFault(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"range {text[:80]!r} is outside the {size} bytes"
        )
    return start, end


def _write_range(request: HttpRequest, device: WritableDevice) -> HttpResponse:
    found = _CONTENT_RANGE.match(request.headers.get("content-range", ""))
    if found is None:
        raise HttpFault(HTTPStatus.BAD_REQUEST, "a write needs Content-Range: bytes <first>-<last>/<size>")
    start, end = int(found[1]), int(found[2]) + 1
    if found[3] != "*" and int(found[3]) != device.capacity:
        raise HttpFault(
            HTTPStatus.CONFLICT, f"the disk has {device.capacity} bytes, the request says {found[3]}"
        )
    if not start < end <= device.capacity:
        raise HttpFault(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "the range is outside the disk")
    position = start
    for piece in request.body.pieces():
        if position + len(piece) > end:
            raise HttpFault(HTTPStatus.BAD_REQUEST, "the body is longer than its range")
        device.write_from(position, piece)
        position += len(piece)
    if position != end:
        raise HttpFault(HTTPStatus.BAD_REQUEST, "the body is shorter than its range")
    return HttpResponse(HTTPStatus.NO_CONTENT)
