"""The settings of this code location, and its shards as static partitions."""

import dagster as dg

from gap3d.fingerprints import shard_keys
from pipelines.command import load_settings

SETTINGS = load_settings()
"""From GAP3D_PRESET (demo unless set) and GAP3D_* in the environment."""

SHARDS = dg.StaticPartitionsDefinition(shard_keys(SETTINGS.catalog.shards))
