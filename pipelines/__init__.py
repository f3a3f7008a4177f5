"""One module per stage: shards in, shards out. Each also runs as ``python -m pipelines.<stage>``."""

import os

# Read by OpenMP when torch is imported: how long a thread waits awake for the others of its team, some 0.3 ms. Within
# an operator they differ by less. With the usual 3 ms an encoder takes 1.7 times as long where other programs want its
# cores.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
