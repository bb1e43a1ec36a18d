"""Builds the tests' Go programs on Debian's govmomi library, and runs govmomi's own simulator.

Programs live under ``tests/sim/go/NAME/main.go``, what they share under ``tests/sim/go/host``. A build takes
seconds to a minute, so its result is kept under ``.cache/go`` of the repository, named by a hash of the
source and of the compiler.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "sim" / "go"
SHARED = SOURCES / "host"
CACHE = ROOT / ".cache" / "go"
#: Where Debian's golang-github-vmware-govmomi-dev puts its source.
GOPATH = Path("/usr/share/gocode")
BUILD_SECONDS = 300


def build(name: str) -> Path:
    """The executable of ``tests/sim/go/NAME``, built unless an earlier build of the same source is kept."""
    folder = SOURCES / name
    digest = hashlib.sha256(_version().encode())
    for source in sorted([*folder.glob("*.go"), *SHARED.glob("*.go")]):
        digest.update(source.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _compile(folder, program)
    return program


def _version() -> str:
    asked = subprocess.run(["go", "version"], capture_output=True, text=True, timeout=60, check=True)
    return asked.stdout.strip()


def _compile(folder: Path, program: Path) -> None:
    fresh = program.with_suffix(".new")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "GOCACHE": str(CACHE / "objects"),
        "CGO_ENABLED": "0",
    }
    built = subprocess.run(
        ["go", "build", "-o", str(fresh), "."],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if built.returncode:
        raise RuntimeError(f"go build of {folder} failed:\n{built.stdout}{built.stderr}")
    fresh.rename(program)


@dataclass(frozen=True)
class Vcsim:
    """Where govmomi's simulator listens and how to log in; ``sha1`` is its certificate's thumbprint."""

    url: str
    host: str
    port: int
    user: str
    password: str
    sha1: str
    api_version: str


@contextmanager
def vcsim(*, esx: bool = False, machines: int = 2) -> Iterator[Vcsim]:
    """govmomi's simulator with that many machines per pool, for as long as the block runs."""
    command = [str(build("vcsim")), f"-vm={machines}", f"-esx={str(esx).lower()}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command[0]} ended with {process.wait(timeout=30)} before it listened")
        said = json.loads(line)
        host, _, port = said["host"].rpartition(":")
        yield Vcsim(
            url=said["url"],
            host=host,
            port=int(port),
            user=said["user"],
            password=said["password"],
            sha1=said["sha1"],
            api_version=said["apiVersion"],
        )
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        process.stdout.close()
