"""The command line that all stages share: a preset, then the environment, then flags, the later over the earlier."""

import argparse
import json
import logging
import os
import signal
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource
from pydantic_settings.exceptions import SettingsError

from gap3d.lease import LeaseHeld
from gap3d.records import SystemicFault
from gap3d.schemas import SCHEMAS
from gap3d.settings import Settings
from gap3d.store import Store
from pipelines.job import NotReady
from pipelines.report import Report
from render.job import printable

RESOLVED = "resolved.json"  # settings as a run resolved them: the environment where they are read has no say


PRESET_HELP = (
    "{}, or a .toml file; several, comma-separated, lie one over the other, such as paper,twenty_views,fast "
    "(default: GAP3D_PRESET, else demo)"
)


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(
        path.name.removesuffix(".toml")
        for path in resources.files("pipelines.presets").iterdir()
        if path.name.endswith(".toml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """A preset's content: one of the package's by name, or a TOML file by path.

    Raises:
        SettingsError: there is none.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return json.loads(path.read_text())  # resolved settings, as saved beside outputs
    if name in presets():
        return tomllib.loads(resources.files("pipelines.presets").joinpath(f"{name}.toml").read_text())
    if path.suffix != ".toml" or not path.is_file():
        raise SettingsError(f"no preset {name!r}: choose one of {', '.join(presets())}, or name a .toml file")
    return tomllib.loads(path.read_text())


def load_settings(
    preset: str | None = None, flags: CliSettingsSource[Settings] | None = None, **values: Any
) -> Settings:
    """Settings from a preset, the environment (``GAP3D_*``) and flags.

    Args:
        preset: a name, a .toml file, or the .json file of resolved settings; several, comma-separated, lie one over
            the other; None takes ``GAP3D_PRESET``, else demo.
        flags: parsed command-line flags.
        values: settings by name, over everything else.
    """
    refuse_unknown_environment()
    name = preset or os.environ.get("GAP3D_PRESET") or "demo"
    names = [each.strip() for each in name.split(",")]
    contents = [read_preset(each) for each in reversed(names)]  # the last has the first word
    resolved = any(Path(each).name == RESOLVED for each in names)

    class Resolved(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            given = [] if resolved else [env_settings]
            layers = (Preset(settings_cls, content) for content in contents)
            return (init_settings, *([flags] if flags else []), *given, *layers)

    class Preset(PydanticBaseSettingsSource):
        def __init__(self, settings_cls: type[BaseSettings], content: dict[str, Any]) -> None:
            super().__init__(settings_cls)
            self.content = content

        def get_field_value(self, *_: Any) -> tuple[Any, str, bool]:
            raise NotImplementedError  # __call__ gives the whole at once

        def __call__(self) -> dict[str, Any]:
            return self.content

    return Settings.model_construct(**dict(Resolved(**values)))


def refuse_unknown_environment() -> None:
    """A misspelt variable would otherwise change nothing, without a word.

    Raises:
        SettingsError: the environment has a ``GAP3D_`` variable that names no setting.
    """
    for name in os.environ:
        section, _, rest = name.removeprefix("GAP3D_").lower().partition("__")
        if not name.startswith("GAP3D_") or name == "GAP3D_PRESET":
            continue
        field = Settings.model_fields.get(section)
        if field is None or bool(rest) != (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            raise SettingsError(f"{name} names no setting: write GAP3D_<SECTION>__<NAME>, e.g. GAP3D_RENDERS__SAMPLES")


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    return Store(settings.store, settings.collection, settings.catalog.shards, settings.blobs)


def parser(description: str) -> argparse.ArgumentParser:
    """Flags that are not settings."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", help=PRESET_HELP.format(", ".join(presets())))
    made.add_argument("--verbose", action="store_true", help="log every step")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Flags and settings; ends the program with a clear message where they can't be used."""
    # With every setting in it the usage is 170 lines, which push what is wrong with a flag off the screen.
    own = made.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
    made.usage = f"{own} [--SECTION.NAME VALUE ...]"
    source: CliSettingsSource[Settings] = CliSettingsSource(
        Settings,
        root_parser=made,
        cli_parse_args=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_use_class_docs_for_groups=True,
    )
    known = made.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if known.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself: once is enough
    try:
        return known, load_settings(known.preset, source(parsed_args=known))
    except ValidationError as error:
        made.exit(2, f"{made.prog}: settings: {'; '.join(mistakes(error))}\n")
    except (SettingsError, tomllib.TOMLDecodeError) as error:
        made.exit(2, f"{made.prog}: settings: {error}\n")


def mistakes(error: ValidationError) -> Iterator[str]:
    """What is wrong with each setting, by the name of its flag and in the validator's words."""
    told = error.errors()
    for each in told:
        if any(
            len(other["loc"]) > len(each["loc"]) and other["loc"][: len(each["loc"])] == each["loc"] for other in told
        ):
            continue  # a list whose only member is wrong counts as empty besides
        name = ".".join(str(step) for step in each["loc"] if isinstance(step, str))
        if each["type"] == "extra_forbidden":
            yield f"{name} is no setting (--help lists them)"
            continue
        said = each["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if each["type"] != "value_error":
            yield f"{name} {said}, not {each['input']!r}"
        else:
            yield said if said.startswith(name) else f"{name}: {said}"  # our own sentences may begin with the name


def stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM as KeyboardInterrupt: what is finished is committed, children are ended."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def sentences(made: argparse.ArgumentParser) -> Iterator[None]:
    """Known faults as one sentence and an exit code, without a traceback."""
    try:
        yield
    except BrokenPipeError:
        os._exit(0)  # the reader, ``head`` say, has seen enough
    except (NotReady, LeaseHeld, SystemicFault, ValueError, OSError) as error:
        made.exit(1, f"{made.prog}: {error}\n")
    except KeyboardInterrupt:
        made.exit(130, f"{made.prog}: stopped; finished rows are kept, run it again to go on\n")


def require_catalog(store: Store, *, or_without: bool = False) -> None:
    """Raises NotReady for a collection with neither a catalog nor images, such as a misspelt one.

    Args:
        store: the collection.
        or_without: a collection with anything else, such as image-text tars, generated token sets or features, needs
            neither.
    """
    firsts = ("catalog", "images")
    if or_without and any((store.folder / stage).exists() for stage in SCHEMAS if stage not in firsts):
        return
    if not any(all(store.manifest(stage, shard).complete for shard in store.shards) for stage in firsts):
        names = Store.collections(store.root)
        made = [name for name in names if any((store.root / name / stage).is_dir() for stage in firsts)]
        others = f", or name one that is there (--collection {', '.join(made)})" if made else ""
        raise NotReady(
            f"collection {store.collection} has no catalog yet in {store.root}: "
            f"run `python -m pipelines.line` (or catalog, or images) first{others}"
        )


def as_job(
    made: argparse.ArgumentParser,
    module: str,
    settings: Settings,
    shards: Sequence[str] = (),
    report: Path | None = None,
) -> None:
    """Run a program on the cluster at ``compute.address``, as a click in the UI does: show its output, end as it ends.

    Args:
        made: the program's parser, which ends it with the job's exit code.
        module: the program's, in ``pipelines``; it knows ``--preset`` and ``--report``, and ``--shards`` if given any.
        settings: everything.
        shards: shard keys; none for a program without shards.
        report: where the report is written too.
    """
    from pipelines.ray_job import JobFailed, submit  # it sets Ray's environment: for those alone that submit

    def show(text: str) -> None:
        try:
            say(text)
            sys.stdout.flush()
        except BrokenPipeError:  # ``head`` has seen enough, and the job goes on
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115

    try:
        proof = submit(module, settings, shards, f"gap3d-{uuid.uuid4().hex[:8]}-{module}", show)
    except JobFailed as failed:
        made.exit(failed.code, f"{made.prog}: {failed.reason}\n")
    if report:
        proof.save(report)


def refuse_job(settings: Settings) -> None:
    """Raises ValueError where a job is wanted of a program, or of flags, that none is made of."""
    if settings.compute.mode == "job":
        raise ValueError(
            "compute.mode = job, and with these flags this program can't submit itself: start it on the cluster "
            f"(ray job submit --address {settings.compute.address or 'ADDRESS'} -- python -m pipelines... "
            "--compute.mode inline, paths absolute), or run it here with --compute.mode inline"
        )


def stage_main(
    module: str, doc: str, run: Callable[[Settings, Sequence[str]], Report], *, sharded: bool = True
) -> None:
    """The program of a stage: ``python -m pipelines.<module>``, here or, if the settings say so, as a Ray job."""
    made = parser(doc)
    if sharded:
        made.add_argument("--shards", help="comma-separated shard keys (default: all)")
    made.add_argument("--report", type=Path, help="write the run's report (JSON) here")
    known, settings = parse(made)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)  # the terminal, or the connection to it, is gone
    with sentences(made):
        keys = open_store(settings).shards
        wanted = sorted(set(known.shards.split(","))) if sharded and known.shards else keys
        unknown = sorted(set(wanted) - set(keys))
        if unknown:
            made.exit(2, f"{made.prog}: no shard {', '.join(unknown)}: the collection has {keys[0]} to {keys[-1]}\n")
        if settings.compute.mode == "job":
            as_job(made, module, settings, wanted if sharded else (), known.report)
            return
        report = run(settings, wanted)
        if known.report:
            report.save(known.report)
        say(*report.lines())


def say(*lines: str) -> None:
    """Print to the user; what strangers named or wrote has no say over the terminal."""
    sys.stdout.write(printable("\n".join(lines)) + "\n")
