"""Passwords and session cookies from a file, a descriptor or a prompt: never from arguments."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from vdkit.errors import UsageError
from vdkit.net.secret import Secret

MAX_PASSWORD_BYTES = 4096


def read_password_file(path: Path, what: str = "password file") -> Secret:
    """The first line of ``path``, which only its owner may be able to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{what} {path}: not a regular file")
        if status.st_mode & 0o077:
            raise UsageError(
                f"{what} {path}: others can read it (mode {status.st_mode & 0o777:04o})",
                remedy=f"run: chmod 600 {path}",
            )
        return _first_line(descriptor, f"{what} {path}")
    finally:
        os.close(descriptor)


def read_password_descriptor(descriptor: int, what: str = "password descriptor") -> Secret:
    """The first line that can be read from an open descriptor (``--password-fd``, ``--cookie-fd``)."""
    return _first_line(descriptor, f"{what} {descriptor}")


def ask_password(user: str, host: str) -> Secret:
    """Ask on the terminal; a UsageError where there is none."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"no password given for {user} at {host}",
            remedy="set VDKIT_PASSWORD, or pass --password-file or --password-fd",
        )
    return Secret(getpass.getpass(f"Password for {user} at {host}: "))


def _first_line(descriptor: int, what: str) -> Secret:
    raw = b""
    while b"\n" not in raw and len(raw) <= MAX_PASSWORD_BYTES:
        try:
            piece = os.read(descriptor, MAX_PASSWORD_BYTES)
        except OSError as error:
            raise UsageError(f"{what}: {error.strerror}") from error
        if not piece:
            break
        raw += piece
    line = raw.partition(b"\n")[0].rstrip(b"\r")
    if not line:
        raise UsageError(f"{what}: empty")
    if len(line) > MAX_PASSWORD_BYTES:
        raise UsageError(f"{what}: longer than {MAX_PASSWORD_BYTES} bytes")
    try:
        return Secret(line.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}: not UTF-8 text") from error
