"""Running ``vdkit`` inside the test's process."""

from __future__ import annotations

import io
import json
import sys
from typing import Any, NamedTuple

import pytest

from vdkit.cli import main


class Ran(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def last(self) -> Any:
        """The last of several documents."""
        return json.loads(self.out.splitlines()[-1])

    def failed(self, code: int, *words: str) -> None:
        """It ended with ``code`` and one line on standard error that holds all the words."""
        lines = [line for line in self.err.splitlines() if line.startswith("vdkit: ")]
        assert (self.code, len(lines)) == (code, 1), self.err
        for word in words:
            assert word in lines[0], lines[0]
        assert "Traceback" not in self.err


class Vdkit:
    """Called with the words of a command line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("signal.signal", lambda *_: None)

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Ran:
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main.run([str(argument) for argument in arguments])
            out.flush()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]
