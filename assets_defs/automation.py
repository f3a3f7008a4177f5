"""When assets run by themselves: on changed shards, changed code or settings, and nightly for what was missed."""

from typing import Any

import dagster as dg

AC: Any = dg.AutomationCondition  # its own annotations do not allow its own examples

GUARDS = ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress()

# First hop after the catalog: keeps the time of every update, so a shard that changes again while it
# is being requested is not lost. The last term serves a sensor that is switched on after the catalog was made.
FIRST_HOP = (
    AC.any_deps_match(AC.newly_updated()).since(AC.newly_requested())
    | (AC.newly_missing() | AC.any_deps_match(AC.will_be_requested()) | AC.code_version_changed()).since_last_handled()
    | (AC.missing() & AC.initial_evaluation())
) & GUARDS

# Everything after it looks at contents: a shard that came out as it was wakes nobody.
ON_CHANGE = (
    AC.newly_missing()
    | AC.any_deps_updated().replace("newly_updated", AC.data_version_changed())
    | AC.code_version_changed()
).since_last_handled() & GUARDS

# For what depends on all shards and on the catalog itself. The catalog alone wakes nobody here: the shards that
# it changed are not made yet, and a caption that changes no target still passes through its shard's stages.
WHEN_SETTLED = (
    AC.newly_missing()
    | AC.any_deps_match(AC.newly_updated()).ignore(dg.AssetSelection.assets("catalog"))
    | AC.code_version_changed()
).since_last_handled() & GUARDS

on_change = dg.AutomationConditionSensorDefinition(
    "on_change",
    target=dg.AssetSelection.all(),
    minimum_interval_seconds=30,
    description="Runs what changed: shards whose catalog changed, and whatever follows from them.",
)
