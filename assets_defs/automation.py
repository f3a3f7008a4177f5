"""When assets run by themselves: on changed shards, changed settings and changed code.

A tick compares with the one before it; what it can't see (a failed run, a run under older code) is ``left_behind``'s.
"""

from typing import Any

import dagster as dg

AC: Any = dg.AutomationCondition  # its own annotations do not allow its own examples

GUARDS = ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress()

# Both keep the time of every update, so that what changes again while it is being requested is not lost. Only a request
# takes them back: an update may come from a run that began before the change.
DEPS_UPDATED = AC.any_deps_match(AC.newly_updated()).since(AC.newly_requested())
NEW_VERSION = AC.code_version_changed().since(AC.newly_requested())

# Made by nobody: removed since the last tick, or the sensor was switched on after what it depends on was made.
NEVER_MADE = AC.newly_missing().since_last_handled() | (AC.missing() & AC.initial_evaluation())

# The catalog depends on nothing here: schedules and sensors start it, and a change of its settings.
ON_NEW_VERSION = NEW_VERSION & ~AC.in_progress()

# First hop after the catalog. A shard that later stages still work on waits: their run began with older downloads, and
# when it ended nobody would know.
FIRST_HOP = (DEPS_UPDATED | NEVER_MADE | NEW_VERSION) & GUARDS
for stage in ("views", "renders", "targets"):
    FIRST_HOP &= ~AC.asset_matches(stage, AC.in_progress())

# Everything after it joins its run, and on its own looks at contents: a shard that came out as it was wakes nobody.
ON_CHANGE = (
    AC.any_deps_match(AC.will_be_requested())
    | AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target()).since_last_handled()
    | NEVER_MADE
    | NEW_VERSION
) & GUARDS

# For what depends on all shards and on the catalog itself. The catalog alone wakes nobody here: the shards that it
# changed are not made yet, and a caption that changes no target still passes through its shard's stages.
WHEN_SETTLED = (
    (DEPS_UPDATED.ignore(dg.AssetSelection.assets("catalog")) | NEVER_MADE | NEW_VERSION)
    & GUARDS
    & ~AC.asset_matches("downloads", DEPS_UPDATED)
)

# Of a collection of images: the first asset depends on nothing here, and a caption that changes no target still passes
# through its shard's targets.
FIRST = (NEVER_MADE | NEW_VERSION) & ~AC.in_progress()
AFTER_TARGETS = (
    DEPS_UPDATED.ignore(dg.AssetSelection.assets(dg.AssetKey("images"))) | NEVER_MADE | NEW_VERSION
) & GUARDS

# Of trainings, where the settings ask for it. The dataset's content counts, not that it was made again; finetuning
# joins the run of the pretraining that it starts from.
AFTER_DATASET = (
    AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target()).since(AC.newly_requested())
    | AC.any_deps_match(AC.will_be_requested()).ignore(dg.AssetSelection.assets("dataset"))
    | NEVER_MADE
    | NEW_VERSION
) & GUARDS

# Of what is measured, where the settings ask for it: it joins the run of a training, and else looks at what came of it.
AFTER_TRAINING = AFTER_DATASET
AFTER_METRICS = (
    AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target()).since(AC.newly_requested())
    | AC.any_deps_match(AC.will_be_requested())
    | NEVER_MADE
    | NEW_VERSION
) & GUARDS

on_change = dg.AutomationConditionSensorDefinition(
    "on_change",
    target=dg.AssetSelection.all(),
    minimum_interval_seconds=10,
    description="Runs what changed: shards whose catalog changed, stages whose settings or code changed, and whatever "
    "follows from them. Switch on left_behind with it, which tries failed shards again.",
)
