"""line: the whole line on one machine: catalog, downloads, views and renders, targets, dataset.

Of a collection of images (images.kind): images, targets, dataset."""

import shlex
import signal
import sys
import time
from pathlib import Path

if not __package__:  # run as a file, here or copied by `ray submit`: its folder is not where packages are looked for
    sys.path.pop(0)

from gap3d.lease import LeaseHeld
from gap3d.parts import write_atomically
from gap3d.records import SystemicFault
from gap3d.settings import Settings
from gap3d.store import free_bytes
from pipelines import catalog, dataset, downloads, images, rendering, targets
from pipelines.command import as_job, load_settings, open_store, parse, parser, say, sentences, stop
from pipelines.dataset_report import write as write_dataset_report
from pipelines.job import NotReady
from pipelines.plan import make_plan, refusal
from pipelines.previews import write_reports
from pipelines.report import Report, merge


def run(settings: Settings) -> Report:
    """Bring every stage up to date, in order.

    Raises:
        SystemicFault: the disk can't hold what would be computed, or an engine is missing.
    """
    store = open_store(settings)
    rendered = settings.pictures == "renders"
    reports = [catalog.run(settings) if rendered else images.run(settings, store.shards)]
    if why := refusal(make_plan(settings), free_bytes(store.root)):
        raise SystemicFault(why)
    for stage in (downloads, rendering, targets) if rendered else (targets,):
        reports.append(stage.run(settings, store.shards))
    reports.append(dataset.run(settings))
    return merge(reports)


def main() -> None:
    """The program."""
    made = parser(__doc__ or "")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    if settings.compute.mode == "job":
        with sentences(made):
            as_job(made, "line", settings, report=known.report)
        return
    started = time.monotonic()
    try:
        report = run(settings)
    except (NotReady, LeaseHeld, SystemicFault, ValueError, OSError) as error:
        made.exit(1, f"stopped: {error}\n")
    except KeyboardInterrupt:
        made.exit(130, "stopped; finished rows are kept, run it again to go on\n")
    if known.report:
        report.save(known.report)
    store = open_store(settings)
    saved = store.folder / "settings.json"
    write_atomically(saved, settings.model_dump_json(indent=1).encode())
    tokens = write_dataset_report(store, settings)
    looks = write_reports(store, settings)
    with_these = "" if settings == load_settings() else f"GAP3D_PRESET={shlex.quote(str(saved))} "
    say(
        "",
        f"Collection {settings.collection!r} in {store.folder}, {time.monotonic() - started:.0f} s:",
        *report.lines(),
        f"encoder:  {targets.label(settings)}",
        *([f"report:   {looks[0]}"] if len(looks) > 1 else []),  # of images the page of tokens is the report
        f"tokens:   {tokens.page}",
        f"pictures: {looks[-1]}",
        f"why:      {shlex.join([sys.executable, '-m', 'pipelines.why', '--preset', str(saved)])} OBJECT_ID_OR_PATH",
        f"UI:       {with_these}make ui, then http://127.0.0.1:3000",
    )


if __name__ == "__main__":
    main()
