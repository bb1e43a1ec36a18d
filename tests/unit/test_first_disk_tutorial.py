"""The tutorial works as it is written: its commands, one block after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "first-disk.md"


@pytest.mark.witness("mke2fs")
def test_the_first_disk(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}:/sbin:/usr/sbin"}
    shown = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        shown.append(done.stdout)
    text = "\n".join(shown)
    assert text.count("hello, disk") == 2
    assert "refused, as it must be" in text
    assert "exit code 2" in text
    assert text.count("The disks are identical.") == 2
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.glob("*.vmdk")) == [
        "archive.vmdk", "broken.vmdk", "mended.vmdk", "web-export.vmdk",
    ]  # fmt: skip
