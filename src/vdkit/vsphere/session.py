"""A session with a vCenter or an ESXi host.

The certificate is checked before the password leaves. A session that the host has let go (they expire after
30 to 50 minutes without a call, and reads over the data port do not count) is renewed when the next call
finds out: the host refuses such a call before it does anything, so repeating it is safe. A call that ended
with a lost connection is repeated only when it reads, for as long as a restart of the management service may
take. A password that was changed meanwhile is tried once and never again, so that no account gets locked.

Source: the vSphere Web Services API reference (SessionManager), our protocol notes (section 2) for the
cookie, and the published VDDK programming guide for a session that is handed over.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pyVmomi import vim

from vdkit.errors import (
    Closed,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    LoginFailed,
    SessionExpired,
    UsageError,
    VixError,
)
from vdkit.net.connect import host_port, unbracket
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.faults import FOREIGN, translate
from vdkit.vsphere.stub import VerifiedStub, negotiate_version

T = TypeVar("T")

DEFAULT_PORT: Final = 443
#: Seconds for connecting and for every answer.
DEFAULT_TIMEOUT: Final = 60.0
#: Seconds between two calls that keep an idle session alive; a third of the shortest life time seen.
KEEP_ALIVE_SECONDS: Final = 600.0
#: Seconds that a reading call is repeated while the host is away: the management service is restarting.
DEFAULT_PATIENCE: Final = 180.0
#: How often a reading call is made in all when it fails for another passing reason.
READ_ATTEMPTS: Final = 3
#: Seconds before the second attempt; doubled for each further one.
RETRY_SECONDS: Final = 0.5
#: The longest pause between two attempts, in seconds.
LONGEST_PAUSE: Final = 15.0

_COOKIE: Final = "vmware_soap_session"
#: What RFC 6265 allows in the value of a cookie; the length is ours.
_COOKIE_VALUE: Final = re.compile(r"[!#-+\--:<-\[\]-~]{1,4096}")
#: Characters of a secret from which on it is looked for in errors: less is found anywhere, by chance.
_SECRET_LENGTH: Final = 4
_AWAY: Final = (ConnectFailed, ConnectionLost, DeadlineExceeded)


@dataclass(frozen=True, slots=True)
class About:
    """What the server says it is."""

    full_name: str
    api_type: str
    api_version: str
    version: str
    build: str
    instance_uuid: str | None

    @property
    def is_vcenter(self) -> bool:
        return self.api_type == "VirtualCenter"


class Session:
    """A logged-in session; make it with :meth:`login` or :meth:`from_cookie`. Any method may be called from
    any thread.

    In a ``with`` block a thread keeps the session alive; it is joined when the block ends.
    """

    def __init__(
        self,
        stub: VerifiedStub,
        host: str,
        port: int,
        user: str,
        password: Secret | None,
        *,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        patience: float = DEFAULT_PATIENCE,
        legacy_tls: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Without a password the session is somebody else's: it is neither renewed nor ended."""
        self._stub = stub
        self._host, self._port = host, port
        self._user, self._password = user, password
        self._patience = patience
        self._legacy_tls = legacy_tls
        #: Why the session could not be renewed: asking again would only lock the account.
        self._lost: VixError | None = None
        self._lock = threading.Lock()
        self._generation = 0
        self._closed = False
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._content: Any = None
        self._about: About | None = None
        self._sleep = sleep
        self._keep_alive_seconds = keep_alive

    @classmethod
    def login(
        cls,
        host: str,
        port: int,
        user: str,
        password: Secret,
        trust: Trust,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        patience: float = DEFAULT_PATIENCE,
        legacy_tls: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Session:
        """Connect, check the certificate, log in.

        ``timeout`` (seconds) holds for connecting and for every answer; ``keep_alive`` is the time in seconds
        between the calls that keep an idle session; ``patience`` is how long (seconds) calls that read are
        repeated while the host is away; ``sleep`` waits between attempts. ``host`` is a name, an IPv4 or an
        IPv6 address (brackets are optional). ``legacy_tls`` allows TLS 1.0 and 1.1, on the data port too.
        Raises TrustError, LoginFailed, ConnectFailed and its kinds, DeadlineExceeded, ProtocolError.
        """
        for text, name in ((user, "user name"), (password.reveal(), "password")):
            if not all(_in_xml(c) for c in text):
                raise UsageError(f"the {name} for {host} holds a control character, which XML cannot carry")
        host, trust, stub = _reach(host, port, trust, timeout=timeout, legacy_tls=legacy_tls)
        session = cls(
            stub,
            host,
            port,
            user,
            password,
            keep_alive=keep_alive,
            patience=patience,
            legacy_tls=trust.legacy_tls,
            sleep=sleep,
        )
        try:
            session._log_in()
        except BaseException:
            session._stub.DropConnections()
            raise
        return session

    @classmethod
    def from_cookie(
        cls,
        host: str,
        port: int,
        cookie: Secret,
        trust: Trust,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        patience: float = DEFAULT_PATIENCE,
        legacy_tls: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Session:
        """Use a session that somebody else has opened and will end; it is never logged out here.

        ``cookie`` is the value of ``vmware_soap_session``, or the whole header. It is checked by a call.
        Raises SessionExpired where the host does not know it (any more), UsageError if it is no cookie, and
        as :meth:`login`, whose other parameters these are.
        """
        value = _cookie_value(cookie)
        host, trust, stub = _reach(host, port, trust, timeout=timeout, legacy_tls=legacy_tls)
        session = cls(
            stub,
            host,
            port,
            "",
            None,
            keep_alive=keep_alive,
            patience=patience,
            legacy_tls=trust.legacy_tls,
            sleep=sleep,
        )
        stub.use_session(value)
        try:
            session._adopt()
        except BaseException:
            session._stub.DropConnections()
            raise
        return session

    # -- what it is ------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        return self._port

    @property
    def where(self) -> str:
        """``host:port``, for messages."""
        return host_port(self._host, self._port)

    @property
    def user(self) -> str:
        """The account that the host says or was told it is."""
        return self._user

    @property
    def legacy_tls(self) -> bool:
        """True if this host was named as one that may speak TLS older than 1.2."""
        return self._legacy_tls

    @property
    def about(self) -> About:
        assert self._about is not None
        return self._about

    @property
    def content(self) -> Any:
        """pyVmomi's ServiceInstanceContent: the root folder and the managers."""
        return self._content

    def sleep(self, seconds: float) -> None:
        """Wait between two looks at the host; a test hands in its own clock at :meth:`login`."""
        self._sleep(seconds)

    @property
    def stub(self) -> VerifiedStub:
        return self._stub

    def managed(self, kind: Any, moref: str) -> Any:
        """pyVmomi's managed object of that kind and id; no call is made."""
        return kind(moref, self._stub)

    def __repr__(self) -> str:
        return f"<Session {self._user!r} at {self.where}{' closed' if self._closed else ''}>"

    # -- calls -----------------------------------------------------------------------------------

    def read(self, what: str, function: Callable[[], T]) -> T:
        """Run ``function``, whose calls only read; repeated after a lost connection or an expired session,
        and for the session's patience while the host is away.

        ``what`` says in a message what was attempted ("list the machines").
        """
        until = time.monotonic() + self._patience
        waited, pause, attempt = 0.0, RETRY_SECONDS, 1
        while True:
            try:
                return self.call(what, function)
            except VixError as error:
                if not error.retryable or self._closed or self._lost is not None:
                    raise
                away = isinstance(error, _AWAY)
                if away and (waited + pause > self._patience or time.monotonic() > until):
                    raise
                if not away and attempt >= READ_ATTEMPTS:
                    raise
            self._sleep(pause)
            waited, pause, attempt = waited + pause, min(pause * 2, LONGEST_PAUSE), attempt + 1

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Run ``function``, whose calls may change something; repeated only after an expired session."""
        generation = self._generation
        try:
            return self._once(what, function)
        except SessionExpired:
            self._renew(generation)
            return self._once(what, function)

    def _once(self, what: str, function: Callable[[], T]) -> T:
        if self._closed:
            raise Closed(f"{self.where}: {what}: the session has been closed")
        try:
            return function()
        except FOREIGN as error:
            raise translate(error, where=self.where, what=what) from error

    def _log_in(self) -> None:
        what = f"log in as {self._user!r}"
        assert self._password is not None
        # By a stub of its own: what other threads are answered meanwhile cannot touch the new cookie.
        door = self._stub.for_login()
        try:
            content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
            manager: Any = content.sessionManager
            vim.SessionManager(manager._GetMoId(), door).Login(self._user, self._password.reveal(), None)
            cookie = door.GetSessionId()
        except (*FOREIGN, VixError) as error:
            failure, cause = self._told(error, what, self._password)
        else:
            if cookie:
                self._stub.use_session(cookie)
                self._know(content)
                return
            failure, cause = self._no_session(what), None
        finally:
            door.DropConnections()
        raise failure from cause

    def _no_session(self, what: str) -> LoginFailed:
        return LoginFailed(
            f"{self.where}: {what}: the host gave no session", remedy="is this a vSphere host?"
        )

    def _told(self, error: Exception, what: str, secret: Secret) -> tuple[VixError, Exception | None]:
        """The error to raise, and its cause; neither of them repeats the secret."""
        found, text = translate(error, where=self.where, what=what), secret.reveal()
        if len(text) < _SECRET_LENGTH or (text not in str(error) and text not in repr(error)):
            return found, None if found is error else error
        # Its kind is kept; what else it says would show the secret, or where it was cut out.
        hidden = f"{self.where}: {what}: failed with words that are not shown, as they repeat the secret"
        return type(found)(hidden, remedy=found.remedy), None

    def _adopt(self) -> None:
        """Find out whose session it is that the cookie stands for."""
        what = "use the session of the cookie"
        failure: VixError = SessionExpired(
            f"{self.where}: {what}: the host does not know it (any more)",
            remedy="get a new cookie, or log in with user and password",
        )
        cause: Exception | None = None
        try:
            content = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
            manager: Any = content.sessionManager
            current = manager.currentSession
        except vim.fault.NotAuthenticated:
            current = None
        except (*FOREIGN, VixError) as error:
            current = None
            failure, cause = self._told(error, what, Secret(self._stub.GetSessionId() or ""))
        if current is None:
            raise failure from cause
        self._user = current.userName or ""
        self._know(content)

    def _know(self, content: Any) -> None:
        self._content = content
        about = content.about
        self._about = About(
            about.fullName, about.apiType, about.apiVersion, about.version, about.build, about.instanceUuid
        )
        self._generation += 1

    def _renew(self, generation: int) -> None:
        """Log in again unless another thread has done so since ``generation``.

        Refused once, it is not tried again: every attempt counts towards the locking of the account.
        """
        with self._lock:
            if self._closed:
                # Logged out under a call of another thread: a new session would have no end.
                raise Closed(f"{self.where}: the session has been closed")
            if generation != self._generation:
                return
            if self._lost is None:
                self._lost = self._try_to_renew()
            if self._lost is not None:
                raise type(self._lost)(self._lost.message, remedy=self._lost.remedy) from None

    def _try_to_renew(self) -> VixError | None:
        """The reason why it is hopeless, or None. What may pass is raised."""
        if self._password is None:
            return SessionExpired(
                f"{self.where}: the session that was handed over as a cookie has ended",
                remedy="it cannot be renewed from here: get a new cookie, or log in with user and password",
            )
        try:
            self._log_in()
        except LoginFailed as error:
            return LoginFailed(
                f"{self.where}: the session has ended and was not renewed: {error.message}",
                remedy=f"has the password of {self._user!r} been changed meanwhile? It is not tried again, "
                "so that the account is not locked; start again with the new one",
            )
        return None

    # -- life cycle ------------------------------------------------------------------------------

    def touch(self) -> None:
        """Make a cheap call that needs a session, so that the host does not let it expire."""
        self.read("keep the session alive", self._current_time)

    def close(self) -> None:
        """Log out, as far as the host still listens, and let go of everything. Twice is fine."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        with self._lock:
            if self._closed:
                return
            # First this: from now on nobody renews what is about to be ended.
            self._closed = True
        # After a long run the session may have expired: not being able to log out harms nobody.
        with suppress(VixError, *FOREIGN):
            if self._password is not None:
                self._content.sessionManager.Logout()
        self._stub.DropConnections()
        self._stub.use_session(None)

    def __enter__(self) -> Self:
        if self._keeper is None and not self._closed:
            self._keeper = threading.Thread(target=self._keep_alive, name=f"vdkit session {self.where}")
            self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._keep_alive_seconds):
            # A failure here is not lost: the next real call meets the same one and reports it.
            with suppress(VixError):
                self.call("keep the session alive", self._current_time)

    def _current_time(self) -> Any:
        return vim.ServiceInstance("ServiceInstance", self._stub).CurrentTime()


def _reach(
    host: str, port: int, trust: Trust, *, timeout: float, legacy_tls: bool
) -> tuple[str, Trust, VerifiedStub]:
    """The host without brackets, how it is trusted, and a stub that speaks its version. Sends no secret."""
    host = unbracket(host.strip())
    if not host or not 0 < port < 1 << 16:
        raise UsageError(f"{host!r} port {port}: a host and a port from 1 to 65535 are needed")
    if legacy_tls:
        trust = replace(trust, legacy_tls=True)
    try:
        version = negotiate_version(host, port, trust, timeout=timeout)
    except FOREIGN as error:
        raise translate(error, where=host_port(host, port), what="connect") from error
    return host, trust, VerifiedStub(host, port, trust, timeout=timeout, version=version)


def _cookie_value(cookie: Secret) -> str:
    """The value of the session's cookie: given alone, or as a header with quotes and attributes."""
    text = cookie.reveal().strip().partition(";")[0].strip()
    name, equals, value = text.partition("=")
    if equals and name.strip().removeprefix("Cookie:").strip() == _COOKIE:
        text = value.strip()
    text = text.strip('"')
    if not _COOKIE_VALUE.fullmatch(text):
        raise UsageError(
            "what was given is no session cookie", remedy=f"give the value of {_COOKIE}, or the whole header"
        )
    return text


def _in_xml(character: str) -> bool:
    """True if XML 1.0 carries it unchanged; a carriage return would arrive as a line feed."""
    code = ord(character)
    return character in "\t\n" or 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code > 0xFFFF
