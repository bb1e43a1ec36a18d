"""JSON documents of a repository: written plainly, read as if an enemy had written them.

A document is one JSON object with a ``schema`` number. Reading bounds its size, refuses duplicate and unknown
members, and checks every value's type and range before anybody uses it; each refusal names the member.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

from vdkit.backup.names import is_unicode
from vdkit.block.store import Store
from vdkit.errors import LimitExceeded, PointInvalid

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Bytes; more than any capacity, file size or count that can be real, and exact in every JSON reader's int64.
MAX_NUMBER = 1 << 62
_PIECE = 1 << 20


def canonical(document: dict[str, object]) -> bytes:
    """The bytes that a document's digest is taken over: sorted members, no blanks, ASCII."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def digest_of(document: dict[str, object]) -> str:
    """SHA-256, in hexadecimal, of the document without its own ``digest`` member."""
    return hashlib.sha256(canonical({k: v for k, v in document.items() if k != "digest"})).hexdigest()


def is_unchanged(document: dict[str, object], digest: str) -> bool:
    """True if ``digest`` is the document's."""
    try:
        return digest == digest_of(document)
    except RecursionError:  # deeper than anything that could have been written
        return False


def parse(data: bytes, where: str) -> dict[str, object]:
    """The object in ``data``. Raises PointInvalid naming ``where``."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        # RecursionError: a bomb of brackets. ValueError: bad UTF-8, bad JSON, numbers of absurd length.
        raise PointInvalid(
            f"{where}: not a readable JSON document ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(value, dict):
        raise PointInvalid(f"{where}: not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a member occurs twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_object(store: Store, name: str, limit: int) -> bytes:
    """All bytes of a small object; larger than ``limit`` bytes is refused before anything is read."""
    with store.open(name) as device:
        size = device.capacity
        if size > limit:
            raise LimitExceeded(f"{store.name}/{name}: {size} bytes, more than the {limit} allowed for it")
        buffer = bytearray(size)
        view = memoryview(buffer)
        for start in range(0, size, _PIECE):
            device.read_into(start, view[start : start + _PIECE])
    return bytes(buffer)


def write_object(store: Store, name: str, data: bytes) -> None:
    """Make an object that did not exist, durably."""
    with store.create(name, len(data)) as device:
        view = memoryview(data)
        for start in range(0, len(data), _PIECE):
            device.write_from(start, view[start : start + _PIECE])
        device.flush()


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Fields:
    """Takes the members of one JSON object, each once; :meth:`done` refuses what nobody asked for."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise PointInvalid(f"{where}: not an object")
        self._left: dict[str, object] = dict(value)
        self.where = where

    def refuse(self, name: str, why: str) -> NoReturn:
        raise PointInvalid(f"{self.where}: {name!r} {why}")

    def take(self, name: str) -> object:
        if name not in self._left:
            raise PointInvalid(f"{self.where}: {name!r} is missing")
        return self._left.pop(name)

    def done(self) -> None:
        if self._left:
            self.refuse(sorted(self._left)[0][:80], "is not a member this version knows")

    def integer(self, name: str, low: int = 0, high: int = MAX_NUMBER) -> int:
        value = self.take(name)
        if type(value) is not int:  # bool is an int to isinstance
            self.refuse(name, "is not a whole number")
        if not low <= value <= high:
            self.refuse(name, f"is not between {low} and {high}")
        return value

    def seconds(self, name: str) -> float:
        value = self.take(name)
        if type(value) is int and 0 <= value <= MAX_NUMBER:
            return float(value)
        if type(value) is not float or not math.isfinite(value) or value < 0:
            self.refuse(name, "is not a number of seconds")
        return value

    def text(self, name: str, limit: int = 1024) -> str:
        value = self.take(name)
        if type(value) is not str:
            self.refuse(name, "is not a text")
        if len(value) > limit:
            self.refuse(name, f"is longer than {limit} characters")
        if not is_unicode(value):
            self.refuse(name, "is not valid Unicode")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in allowed:
            self.refuse(name, f"is none of {', '.join(allowed)}")
        return value

    def matching(self, name: str, test: Callable[[str], bool], what: str) -> str:
        value = self.text(name)
        if not test(value):
            self.refuse(name, f"is not {what}")
        return value

    def sha256(self, name: str) -> str:
        return self.matching(name, lambda v: _SHA256.fullmatch(v) is not None, "64 hexadecimal digits")

    def time(self, name: str) -> datetime:
        value = self.matching(
            name, lambda v: _TIME.fullmatch(v) is not None, "a time like 2026-01-31T12:00:00Z"
        )
        try:
            return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            self.refuse(name, "is not a date that exists")

    def optional_text(self, name: str, limit: int = 1024) -> str | None:
        if name in self._left and self._left[name] is None:
            self.take(name)
            return None
        return self.text(name, limit)

    def items(self, name: str, limit: int) -> list[object]:
        value = self.take(name)
        if type(value) is not list:
            self.refuse(name, "is not a list")
        if len(value) > limit:
            self.refuse(name, f"has more than {limit} items")
        return value

    def mapping(self, name: str) -> dict[str, object]:
        value = self.take(name)
        if type(value) is not dict:
            self.refuse(name, "is not an object")
        return value

    def inner(self, name: str) -> Fields:
        return Fields(self.take(name), f"{self.where}: {name}")
