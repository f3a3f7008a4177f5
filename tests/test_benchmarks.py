"""Every benchmark runs, at its smallest size; what it says about speed is not looked at."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._objects import files

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
NUMBER = re.compile(r"(?<![\w.])-?(?:(?:nan|inf)\b|\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)


def run(*arguments):
    """What ``python -m ...`` prints, and how it ends."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_prints_a_table_of_finite_numbers(name):
    done = run(f"benchmarks.{name}", "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = [float(found.replace(",", "")) for found in NUMBER.findall(done.stdout)]
    assert len(numbers) >= 5, done.stdout
    assert all(map(math.isfinite, numbers)), done.stdout


@pytest.mark.slow
def test_a_benchmark_that_fails_is_named_at_the_end_and_ends_no_other(tmp_path):
    done = run("benchmarks", "persistence", "retrieval", "--quick", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} has no 3D file" in done.stderr
    assert "failed: persistence;" in done.stderr
    assert "of product" in done.stdout.partition("== retrieval")[2]


@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_no_object_is_taken_twice_however_many_are_asked_for(tmp_path, count):
    for number in range(7):
        (tmp_path / f"{number}.ply").touch()
    (tmp_path / "captions.csv").touch()
    taken = files(tmp_path, count)
    assert len(set(taken)) == len(taken) == min(count, 7)
    assert {path.suffix for path in taken} == {".ply"}


def test_all_benchmarks_are_run_unless_some_are_named():
    told = run("benchmarks", "--help")
    assert told.returncode == 0
    listed = told.stdout.partition("(default: all):")[2].partition("options:")[0]
    assert re.findall(r"\w+", listed) == BENCHMARKS
    assert {"training_step", "sampler"} <= set(BENCHMARKS)
