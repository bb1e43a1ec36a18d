"""Log-in, the session cookie, expiry, and what belongs to one session."""

from __future__ import annotations

import re
import secrets
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.clock import Clock
from vdkit.sim.soap.faults import not_found
from vdkit.sim.soap.objects import Call, Managed, call, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

COOKIE = "vmware_soap_session"
#: Sessions and objects of one session that are kept: a bound for clients that never log out.
MAX_SESSIONS = 1_000
MAX_OBJECTS = 10_000
_COOKIE_VALUE = re.compile(rf'(?:^|[;,\s]){COOKIE}\s*=\s*"?([0-9A-Za-z_-]{{1,128}})"?')


class Session:
    """One client: its key, its times, and the views, filters and pages it made."""

    def __init__(self, key: str, user: str, now: datetime, *, agent: str = "", peer: str = "") -> None:
        self.key = key
        self.user = user
        self.login_time = now
        self.last_active_time = now
        self.last_active = 0.0
        self.agent = agent
        self.peer = peer
        self.calls = 0
        self.closed = False
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, str], Managed] = {}

    def add(self, managed: Managed) -> None:
        with self._lock:
            if len(self._objects) >= MAX_OBJECTS:
                raise vim.fault.InvalidState(msg="The session holds too many objects; destroy some")
            self._objects[managed.key] = managed

    def remove(self, managed: Managed) -> None:
        with self._lock:
            if self._objects.pop(managed.key, None) is None:
                raise not_found(managed.ref)

    def find(self, kind: str, moid: str) -> Managed | None:
        with self._lock:
            return self._objects.get((kind, moid))

    def close(self) -> None:
        self.closed = True
        with self._lock:
            self._objects.clear()

    def as_user_session(self) -> Any:
        return vim.UserSession(
            key=self.key,
            userName=self.user,
            fullName=self.user,
            loginTime=self.login_time,
            lastActiveTime=self.last_active_time,
            locale="en",
            messageLocale="en",
            extensionSession=False,
            ipAddress=self.peer,
            userAgent=self.agent,
            callCount=self.calls,
        )


class Sessions:
    """The table of sessions. A session is gone ``idle_seconds`` after its last call; None: never."""

    def __init__(self, clock: Clock, idle_seconds: float | None) -> None:
        self._clock = clock
        self.idle_seconds = idle_seconds
        #: Calls after which a session ends; None for no end.
        self.most_calls: int | None = None
        #: Log-ins so far.
        self.opened = 0
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def open(self, user: str, agent: str, peer: str) -> Session:
        session = Session(secrets.token_hex(20), user, self._clock.now(), agent=agent, peer=peer)
        session.last_active = self._clock.monotonic()
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                raise vim.fault.InvalidLogin(msg="The maximum number of sessions has been exceeded.")
            self._sessions[session.key] = session
            self.opened += 1
        return session

    def of_cookie(self, cookie: str | None) -> Session | None:
        """The living session of a ``Cookie`` header; using it keeps it alive."""
        found = _COOKIE_VALUE.search(cookie or "")
        if found is None:
            return None
        with self._lock:
            session = self._sessions.get(found.group(1))
            if session is None:
                return None
            now = self._clock.monotonic()
            idle = self.idle_seconds is not None and now - session.last_active > self.idle_seconds
            if idle or (self.most_calls is not None and session.calls >= self.most_calls):
                del self._sessions[session.key]
                session.close()
                return None
            session.calls += 1
            self.touch(session)
            return session

    def touch(self, session: Session) -> None:
        """It was used just now."""
        session.last_active = self._clock.monotonic()
        session.last_active_time = self._clock.now()

    def close(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.key, None)
        session.close()

    def close_all(self) -> None:
        """End every session, as a restart of the management service does."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()

    def all(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())


def set_cookie(session: Session) -> str:
    return _set_cookie(session.key)


def nobodys_cookie() -> str:
    """What an answer to a caller without a session has: a fresh key that opens nothing."""
    return _set_cookie(secrets.token_hex(20))


def _set_cookie(key: str) -> str:
    return f'{COOKIE}="{key}"; Path=/; HttpOnly; Secure'


class SessionManager(Managed):
    """One for each session, all under one id, so that ``currentSession`` is the asker's; one for nobody."""

    kind = "SessionManager"

    def __init__(self, moid: str, world: World, session: Session | None = None) -> None:
        super().__init__(moid)
        self._world = world
        self._session = session

    @prop("currentSession")
    def current(self) -> Any:
        return None if self._session is None else self._session.as_user_session()

    @prop("sessionList")
    def listed(self) -> list[Any]:
        return [session.as_user_session() for session in self._world.sessions.all()]

    @prop("supportedLocaleList", "messageLocaleList")
    def locales(self) -> list[str]:
        return ["en"]

    @prop("defaultLocale")
    def default_locale(self) -> str:
        return "en"

    @call("Login")
    def log_in(self, call: Call) -> Any:
        world = self._world
        user, password = call.userName or "", call.password or ""
        same = secrets.compare_digest(user.encode(), world.user.encode())
        same &= secrets.compare_digest(password.encode(), world.password.reveal().encode())
        most = world.scenario.password_logins
        if not same or world.scenario.login_refused or (most is not None and world.sessions.opened >= most):
            raise vim.fault.InvalidLogin(
                msg="Cannot complete login due to an incorrect user name or password."
            )
        session = world.open_session(user, call.client)
        call.cookies[:] = [set_cookie(session)]
        return session.as_user_session()

    @call("SessionIsActive")
    def is_active(self, call: Call) -> bool:
        return any(s.key == call.sessionID and s.user == call.userName for s in self._world.sessions.all())

    @call("TerminateSession")
    def terminate(self, call: Call) -> None:
        for session in self._world.sessions.all():
            if session.key in call.sessionId:
                self._world.sessions.close(session)
        self._world.changes.bump()

    @call("Logout")
    def log_out(self, call: Call) -> None:
        self._world.sessions.close(call.session)
        self._world.changes.bump()
