"""The Dagster UI as a person uses it: a real browser, real clicks."""

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from browser import NEEDED, Browser
from code_location import SHARDS, environment, load, materialize, write_toys
from dagster_site import Site
from ticks import history

from pipelines import downloads
from pipelines.command import load_settings

pytestmark = NEEDED
PARTITIONS = """{ assetNodeOrError(assetKey: {path: ["downloads"]}) { ... on AssetNode { assetPartitionStatuses {
  ... on DefaultPartitionStatuses { materializedPartitions } } } } }"""
ASSETS = ("catalog", "shard_manifest", "downloads", "views", "renders", "targets", "dataset")
ALIGNERS = ("pretrained_aligner", "finetuned_aligner")
EVALUATION = ("alignment_metrics", "retrieval_metrics", "generation_metrics", "evaluation_report")


def button(text: str) -> str:
    """A button whose text begins so."""
    return f"//button[starts-with(normalize-space(.), '{text}') and not(@disabled)]"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """``dagster dev`` and a browser; catalog and downloads are made already, views and what follows are not."""
    root = tmp_path_factory.mktemp("ui")
    write_toys(root / "objects")
    settings = environment(root / "store", root / "objects")
    with pytest.MonkeyPatch.context() as patch, history(root / "site") as instance:
        defs = load(patch, settings)
        assert materialize(defs, instance, "catalog").success
        downloads.run(load_settings(), SHARDS)
        assert materialize(defs, instance, "downloads", shard="1").success
    with Site(root / "site", settings) as site:
        browser = Browser(root / "profile")
        try:
            yield SimpleNamespace(root=root, site=site, browser=browser)
        finally:
            browser.driver.quit()


@pytest.fixture(scope="module")
def clicked(place) -> str:
    """Shard 1 of views and renders, materialised by clicking; the run's id."""
    page, site = place.browser, place.site
    before = runs(site)
    page.open(f"{site.address}/locations/gap3d/asset-groups/images/lineage")
    page.see("views", "renders", "4 partitions")
    page.click(button("Materialize all"))
    page.see("Partition selection")
    page.click("//*[text()='Select a partition or create one']")
    page.shot("ui_partitions")
    page.see("Select all (4)")
    page.click("//*[not(*) and normalize-space(.)='1']")
    page.shot("ui_chosen")
    page.press(button("Launch 1 run"), "Launch 1 run")
    (run,) = wait_new(site, before)
    assert site.wait(run) == "SUCCESS", site.events(run)[-3000:]
    return run


def runs(site: Site) -> set[str]:
    """Ids of all runs."""
    found = site.ask("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]
    return {run["runId"] for run in found}


def wait_new(site: Site, before: set[str], seconds: float = 30.0) -> set[str]:
    """Runs that were not there before."""
    deadline = time.monotonic() + seconds
    while not (new := runs(site) - before):
        assert time.monotonic() < deadline, "no run was launched"
        time.sleep(0.2)
    return new


def see_the_shard(place) -> None:
    """The page of shard 1 of views: metadata, where its report is, and the contact sheet as a picture."""
    page, site = place.browser, place.site
    page.open(f"{site.address}/assets/views?partition=1&view=partitions")
    shown = page.see("contact_sheet", "reports/shard-1.html", "rows_per_second", "digest", "statuses")
    assert "Materialized" in shown
    page.click("//*[contains(text(), 'Show Markdown')]")
    deadline = time.monotonic() + 20
    widths: list[int] = []
    while not widths and time.monotonic() < deadline:
        pictures = page.find("//img[starts-with(@src, 'data:image/jpeg')]")
        widths = [width for width in (picture.get_property("naturalWidth") for picture in pictures) if width]
    page.shot("ui_contact_sheet")
    assert widths and widths[0] > 250


def test_the_asset_graph_loads_with_all_assets_in_their_groups(place):
    page = place.browser
    page.open(f"{place.site.address}/asset-groups")
    page.see("objects", "images", "features", "Materialize all")
    page.shot("ui_groups")
    groups = {"objects": ASSETS[:3], "images": ASSETS[3:5], "features": ASSETS[5:]}
    groups |= {"model": ALIGNERS, "evaluation": EVALUATION}
    for group, assets in groups.items():
        page.open(f"{place.site.address}/locations/gap3d/asset-groups/{group}/lineage")
        page.see(*assets, "Asset Group in")
        page.shot(f"ui_group_{group}")


def test_a_shard_is_materialised_by_clicking_and_shows_its_metadata_and_picture(place, clicked):
    see_the_shard(place)


@pytest.mark.slow  # the check itself is in test_dagster
def test_a_check_executed_by_clicking_fails_visibly_on_a_damaged_shard(place, clicked):
    page, site = place.browser, place.site
    folder = place.root / "store" / "toys" / "renders" / "1"
    (part,) = [path for path in folder.glob("*.parquet") if path.name != "manifest.parquet"]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 0xFF
    part.write_bytes(content)
    before = runs(site)
    page.open(f"{site.address}/assets/renders?view=checks&checkDetail=parts_intact")
    page.see("parts_intact", "Latest execution")
    page.click(button("Execute") + "[not(contains(., 'all'))]")
    (run,) = wait_new(site, before)
    assert site.wait(run) == "SUCCESS", site.events(run)[-3000:]
    see_the_failed_check(place)


def see_the_failed_check(place) -> None:
    page = place.browser
    page.open(f"{place.site.address}/assets/renders?view=checks&checkDetail=parts_intact")
    shown = page.see("parts_intact", "damaged_shards", "remedy", "Failed")
    page.shot("ui_failed_check")
    assert "rm -r" in shown


@pytest.mark.slow
def test_a_backfill_of_all_shards_is_launched_by_clicking_and_makes_each_once(place):
    page, site = place.browser, place.site
    before = runs(site)
    page.open(f"{site.address}/assets/downloads")
    page.see("downloads", "Materialize")
    page.click(button("Materialize"))
    page.see("Partition selection")
    page.click("//*[text()='Select a partition or create one']")
    page.click("//*[not(*) and normalize-space(.)='Select all (4)']")
    page.shot("ui_backfill_chosen")
    page.press(button("Launch"), "Partition selection")
    page.shot("ui_backfill")
    deadline = time.monotonic() + 90
    while len(new := runs(site) - before) < 4:
        assert time.monotonic() < deadline, f"{len(new)} runs of 4"
        time.sleep(0.5)
    assert [site.wait(run) for run in new] == ["SUCCESS"] * 4
    found = site.ask(PARTITIONS)["assetNodeOrError"]["assetPartitionStatuses"]
    assert sorted(found["materializedPartitions"]) == ["0", "1", "2", "3"]
    assert runs(site) - before == new


@pytest.mark.slow  # what an instance finds of an earlier one's history, every test of test_automation over a copy says
def test_history_survives_a_restart(place, clicked):
    assert place.site.stop() == []
    place.site.start()
    see_the_shard(place)
    see_the_failed_check(place)
    assert clicked in runs(place.site)
