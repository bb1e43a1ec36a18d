"""The file of hosts whose certificates somebody has looked at and trusts.

One host a line: address, port, SHA-256 thumbprint, separated by blanks; ``#`` begins a comment. Addresses are
written without brackets, names in lower case, IPv6 in its shortest form, so that one host has one entry
however it is written. The file is replaced as a whole, under a lock of its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vdkit.errors import (
    DeadlineExceeded,
    FormatError,
    LimitExceeded,
    TrustError,
    UsageError,
    from_os_error,
)
from vdkit.net.connect import host_port, unbracket
from vdkit.net.deadline import Deadline
from vdkit.net.trust import Trust, normalise_thumbprint

#: Bytes of the file; more is not one.
MAX_BYTES: Final = 1 << 20
_SHA256_LENGTH: Final = 95
_FILE_MODE: Final = 0o600
#: Seconds to wait for others that write to it.
_LOCK_SECONDS: Final = 10.0

#: What :meth:`KnownHosts.remember` did.
Remembered = Literal["added", "unchanged", "replaced"]


@dataclass(frozen=True, slots=True)
class KnownHost:
    """One entry. ``line`` counts from 1."""

    host: str
    port: int
    sha256: str
    line: int


def address_key(host: str) -> str:
    """The one way in which an address is written here: no brackets, lower case, IPv6 at its shortest."""
    bare = unbracket(host.strip()).lower().rstrip(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(bare))
    return bare


class KnownHosts:
    """See the module. A file that is not there is one without entries."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, host: str, port: int) -> KnownHost | None:
        """Raises FormatError, LimitExceeded, AccessDenied."""
        key = (address_key(host), port)
        return next((known for known in self._entries(self._read()) if (known.host, known.port) == key), None)

    def trust(self, host: str, port: int) -> Trust | None:
        """The pin of that host, whose errors name the line it comes from; None if it is not known."""
        known = self.find(host, port)
        return None if known is None else Trust(sha256=known.sha256, source=f"{self.path}, line {known.line}")

    def remember(self, host: str, port: int, sha256: str, *, replace: bool = False) -> Remembered:
        """Record a thumbprint; another one for the same host and port only with ``replace``.

        Raises TrustError, with both thumbprints, if the host is known with another one.
        """
        key, print_ = address_key(host), normalise_thumbprint(sha256)
        if not key or any(c.isspace() or c == "#" or not c.isprintable() for c in key):
            raise UsageError(f"{host!r} cannot be written down as a host")
        if len(print_) != _SHA256_LENGTH:
            raise UsageError("known hosts are remembered by the SHA-256 of their certificate")
        with self._locked():
            text = self._read()
            known = next((k for k in self._entries(text) if (k.host, k.port) == (key, port)), None)
            if known is not None and known.sha256 == print_:
                return "unchanged"
            if known is not None and not replace:
                raise TrustError(
                    f"{host_port(key, port)}: {self.path}, line {known.line}, has SHA-256 {known.sha256}, "
                    f"but the host presents {print_}",
                    remedy="if its certificate was replaced (compare with the host's console), add --replace",
                )
            lines = text.splitlines()
            entry = f"{key} {port} {print_}"
            if known is None:
                lines.append(entry)
            else:
                lines[known.line - 1] = entry
            self._write("".join(f"{line}\n" for line in lines))
            return "added" if known is None else "replaced"

    # -- the file --------------------------------------------------------------------------------

    def _entries(self, text: str) -> Iterator[KnownHost]:
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.partition("#")[0].split()
            if not fields:
                continue
            where = f"{self.path}, line {number}"
            if len(fields) != 3 or not fields[1].isascii() or not fields[1].isdigit():
                raise FormatError(f"{where}: not of the form HOST PORT SHA256")
            try:
                print_ = normalise_thumbprint(fields[2])
            except UsageError as error:
                raise FormatError(f"{where}: {error.message}") from error
            if len(print_) != _SHA256_LENGTH or not 0 < int(fields[1][:6]) < 1 << 16:
                raise FormatError(f"{where}: not of the form HOST PORT SHA256")
            yield KnownHost(address_key(fields[0]), int(fields[1]), print_, number)

    def _read(self) -> str:
        try:
            # Without waiting: a pipe of that name would be opened when somebody writes to it.
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise FormatError(f"{self.path}: not a regular file, so no known hosts")
                if status.st_mode & stat.S_IWOTH:
                    raise TrustError(
                        f"{self.path}: everybody may write to it (mode {status.st_mode & 0o777:04o}), so "
                        "that it says nothing about whom to trust",
                        remedy=f"look through it, then run: chmod o-w {self.path}",
                    )
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise from_os_error(error, f"{self.path}: reading the known hosts") from error
        if len(data) > MAX_BYTES:
            raise LimitExceeded(f"{self.path}: known hosts of more than {MAX_BYTES} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: not UTF-8 at byte {error.start}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = self.path.resolve().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, f"{self.path}: writing the known hosts") from error
        try:
            # Held for the moment that a small file takes; given back with the descriptor.
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = Deadline.after(_LOCK_SECONDS)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if deadline.expired:
                    raise DeadlineExceeded(
                        f"{self.path}: another program kept its folder locked for {_LOCK_SECONDS:g} seconds",
                        remedy="fuser shows which one",
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise from_os_error(error, f"{self.path}: locking its folder") from error
            else:
                return

    def _write(self, text: str) -> None:
        """The whole file, beside it first: a crash leaves the old one or the new one."""
        target = self.path.resolve()
        fresh = target.with_name(f"{target.name}~")
        try:
            mode = target.stat().st_mode & 0o777 if target.exists() else _FILE_MODE
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(fresh, flags, _FILE_MODE), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise from_os_error(error, f"{self.path}: writing the known hosts") from error
