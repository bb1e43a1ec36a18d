"""What the management port serves, by path: SOAP, files, the guest's door."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus

from vdkit.errors import VixError
from vdkit.sim.folder_access import FolderAccess, HttpFault, from_error, refusal
from vdkit.sim.https import HttpRequest, HttpResponse
from vdkit.sim.scenario import Scenario
from vdkit.sim.soap.dispatch import Dispatcher, service_versions
from vdkit.sim.soap.objects import Client
from vdkit.sim.soap.world import World

#: Largest SOAP request, in bytes.
MAX_REQUEST = 4 << 20
_XML = ("Content-Type", "text/xml; charset=utf-8")
_HTML = ("Content-Type", "text/html; charset=utf-8")


class Site:
    """``restart`` is called, from a thread of a request, when the scenario's restart is due."""

    def __init__(self, world: World, scenario: Scenario, restart: Callable[[], None]) -> None:
        self._world = world
        self._scenario = scenario
        self._restart = restart
        self._soap = Dispatcher(world)
        self._files = FolderAccess(world.inventory)
        self._mutex = threading.Lock()
        self._requests = 0
        self._restarted = False

    def serve(self, request: HttpRequest) -> HttpResponse:
        if self._restart_is_due():
            self._restart()
        if self._scenario.proxy_status is not None:
            return _page(HTTPStatus(self._scenario.proxy_status))
        path = request.path
        try:
            if path in ("/sdk", "/sdk/", "/sdk/vimService"):
                return self._call(request)
            if path == "/sdk/vimServiceVersions.xml" and request.method == "GET":
                return HttpResponse(headers=[_XML], body=service_versions(self._scenario.api_version))
            if path == "/folder" or path.startswith("/folder/"):
                return self._folder(request)
            if path.startswith("/guest/"):
                self._authenticate(request)
                return self._files.guest(request)
        except HttpFault as fault:
            return refusal(fault)
        except VixError as error:
            answer = from_error(error)
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._world.note_error(error)
            return refusal(answer)
        return refusal(HttpFault(HTTPStatus.NOT_FOUND, f"nothing is served at {path[:200]}"))

    def _restart_is_due(self) -> bool:
        limit = self._scenario.restart_after_requests
        with self._mutex:
            self._requests += 1
            due = limit is not None and not self._restarted and self._requests > limit
            self._restarted |= due
            return due

    def _call(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, "calls are POST requests")
        headers = request.headers
        client = Client(request.peer, headers.get("user-agent", ""), _host_of(request.host))
        body = request.body.read(MAX_REQUEST)
        reply = self._soap.serve(body, headers.get("soapaction", ""), headers.get("cookie"), client)
        cookies = [("Set-Cookie", cookie) for cookie in reply.cookies]
        return HttpResponse(reply.status, [_XML, ("Cache-Control", "no-cache"), *cookies], reply.body)

    def _folder(self, request: HttpRequest) -> HttpResponse:
        if request.method not in ("GET", "HEAD", "PUT"):
            raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not served here")
        self._authenticate(request)
        if self._scenario.folder_status is not None:
            raise HttpFault(HTTPStatus(self._scenario.folder_status), "simulated fault")
        return self._files.folder(request)

    def _authenticate(self, request: HttpRequest) -> None:
        """A session's cookie, or the user and password of this request. Raises 401."""
        if self._world.session_of(request.headers.get("cookie")) is not None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and not self._scenario.login_refused:
            try:
                given = base64.b64decode(token.strip(), validate=True)
            except binascii.Error:
                given = b""
            wanted = f"{self._world.user}:{self._world.password.reveal()}".encode()
            if secrets.compare_digest(given, wanted):
                return
        raise HttpFault(HTTPStatus.UNAUTHORIZED, "log in first: a session's cookie, or basic authentication")


def _page(status: HTTPStatus) -> HttpResponse:
    """What proxies and load balancers answer with when the service behind them does not."""
    text = (
        f"<html><head><title>{status.value} {status.phrase}</title></head><body>{status.phrase}</body></html>"
    )
    return HttpResponse(status, [_HTML], text.encode())


def _host_of(header: str) -> str:
    """The host part of a ``Host`` header."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
