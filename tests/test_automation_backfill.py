"""All shards from the command line, with the limits of dagster.yaml."""

import subprocess

import pytest
from code_location import SHARDS, environment, program, write_toys
from dagster_site import ROOT, Site, executable
from processes import wait_for

RUNS = """{ runsOrError { ... on Runs { results { runId status startTime endTime tags { key value }
  stepStats { stepKey startTime endTime } } } } }"""


def overlap(spans: list[tuple[float, float]]) -> int:
    """The most of these (start, end) that hold at one time."""
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


@pytest.mark.slow
def test_all_shards_are_backfilled_by_the_documented_command_several_runs_at_once_one_step_of_a_pool(tmp_path):
    write_toys(tmp_path / "objects")
    settings = environment(tmp_path / "store", tmp_path / "objects")
    program(settings, "line")
    site = Site(tmp_path / "site", settings)
    limits = site.folder / "dagster.yaml"
    text = limits.read_text()
    for name, (before, after) in {"max_concurrent_runs": ("1", "4"), "default_limit": ("8", "1")}.items():
        assert f"{name}: {before}" in text
        text = text.replace(f"{name}: {before}", f"{name}: {after}")
    limits.write_text(text)
    text = (ROOT / "docs" / "automation.md").read_text()
    (command,) = [line for line in text.splitlines() if "dagster job backfill" in line]
    with site:
        assert site.wait(site.launch("catalog")) == "SUCCESS"
        subprocess.run(
            ["bash", "-c", command.replace("dagster job", f"{executable('dagster')} job").partition("#")[0]],
            cwd=site.folder,
            env={**site.environment, "PWD": str(site.folder)},
            check=True,
            timeout=60,
        )

        def runs():
            found = [
                (run, {tag["key"]: tag["value"] for tag in run["tags"]})
                for run in site.ask(RUNS)["runsOrError"]["results"]
            ]
            return {tags["dagster/partition"]: run for run, tags in found if "dagster/backfill" in tags}

        wait_for(lambda: [run["status"] for run in runs().values()] == ["SUCCESS"] * 4, 240, "four runs that succeed")
        found = runs()
    assert sorted(found) == list(SHARDS)
    assert overlap([(run["startTime"], run["endTime"]) for run in found.values()]) > 1
    for step in ("downloads", "views_and_renders", "targets"):
        spans = [
            (stats["startTime"], stats["endTime"])
            for run in found.values()
            for stats in run["stepStats"]
            if stats["stepKey"] == step
        ]
        assert len(spans) == len(SHARDS)
        assert overlap(spans) == 1, (step, spans)
