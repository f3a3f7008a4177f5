"""Performance claims, as ratios measured side by side in one run; never timed tests."""

import pipelines  # noqa: F401 - its environment, before torch is imported
