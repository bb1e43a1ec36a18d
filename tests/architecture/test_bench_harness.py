"""The benchmarks' own arithmetic: which ratio, which verdict, which exit code."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("harness")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "_commit", lambda: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    return module


def _job(harness: ModuleType, name: str, *seconds: float) -> object:
    """A job whose runs take what is listed, the warm-up first."""
    runs = iter(seconds)
    return harness.Job(name, lambda: harness.Run(next(runs)))


def test_time_ratio_is_paired(harness: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench = harness.Benchmark("sample", "a sample")
    ours = _job(harness, "ours", 9.0, 1.0, 2.0, 3.0)
    peer = _job(harness, "peer", 9.0, 4.0, 4.0, 4.0)
    made = bench.compare("copy", ours, peer, harness.Target(0.5))
    assert made.ratios == [0.25, 0.5, 0.75]
    assert made.met
    assert bench.finish() == 0
    printed = capsys.readouterr().out
    assert "verdict: 0.5 of the time of peer (0.25 - 0.75 in 3 pairs), target at most 0.5: met" in printed


def test_speed_ratio_and_a_missed_target(harness: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench = harness.Benchmark("sample", "a sample")
    ours, peer = _job(harness, "ours", *[2.0] * 4), _job(harness, "peer", *[1.0] * 4)
    made = bench.compare("read", ours, peer, harness.Target(0.6, speed=True))
    assert made.ratio == 0.5
    assert not made.met
    assert bench.finish() == 1
    assert "target missed: read" in capsys.readouterr().out


def test_the_first_run_of_long_jobs_counts(harness: ModuleType) -> None:
    bench = harness.Benchmark("sample", "a sample")
    made = bench.compare(
        "slow", _job(harness, "o", *[1.0] * 3), _job(harness, "p", *[60.0] * 3), harness.Target(1)
    )
    assert len(made.ratios) == harness.QUICK_PAIRS == 3


def test_a_program_that_takes_too_long_is_cut(harness: ModuleType) -> None:
    run = harness.run_command([sys.executable, "-c", "import time; time.sleep(60)"], cut=0.2)
    assert 0.2 <= run.seconds < 30
    with pytest.raises(SystemExit, match="ended with 3"):
        harness.run_command([sys.executable, "-c", "raise SystemExit(3)"], cut=60)


def test_limit(harness: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench = harness.Benchmark("sample", "a sample")
    bench.limit("open", "s", [0.1, 0.1, 0.9], 0.2)
    assert "0.5 of the limit of 0.2 s: met" in capsys.readouterr().out
    bench.limit("open", "s", [0.3], 0.2)
    assert bench.finish() == 1


def test_result_is_recorded_with_the_machine(harness: ModuleType, tmp_path: Path) -> None:
    bench = harness.Benchmark("sample", "a sample")
    bench.peer_version(sys.executable, "--version")
    bench.limit("open", "s", [0.1], 0.2)
    bench.finish()
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("sample-quick-")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {"cpu", "cores", "memory", "kernel", "python", "peers"} <= set(record["machine"])
    assert record["results"][0]["met"] is True


def test_command_is_measured_and_its_failure_ends_the_run(harness: ModuleType, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    run = harness.run_command([sys.executable, "-c", "pass"], remove=old)
    assert run.seconds > 0
    assert run.peak_rss > 1 << 20
    assert not old.exists()
    with pytest.raises(SystemExit, match="ended with 3"):
        harness.run_command([sys.executable, "-c", "import sys; sys.exit(3)"])
