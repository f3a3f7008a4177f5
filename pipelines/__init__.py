"""One module per stage: shards in, shards out. Each also runs as ``python -m pipelines.<stage>``."""
