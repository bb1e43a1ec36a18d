"""Records what a piece of code really opens: not the names it asks for, but where they led."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def recorded_opens(inside: Path) -> Iterator[list[str]]:
    """Every file that is opened is noted by its real path; one outside ``inside`` fails the test.

    Folders on the way to it may be opened as such. The built-in ``open`` is not how the package opens files,
    so it must not be used at all.
    """
    real_open, root = os.open, os.path.realpath(inside)
    seen: list[str] = []

    def noting(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real_open(path, flags, mode, dir_fd=dir_fd)
        where = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        seen.append(where)
        if flags & os.O_DIRECTORY and (root == where or root.startswith(where.rstrip("/") + "/")):
            return descriptor
        if where != root and not where.startswith(root + "/"):
            os.close(descriptor)
            raise AssertionError(f"opened {where}, which is outside {root}")
        return descriptor

    def refused(path: Any, *rest: Any, **more: Any) -> Any:
        raise AssertionError(f"the built-in open was called for {path!r}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", noting)
        patch.setattr(builtins, "open", refused)
        yield seen
