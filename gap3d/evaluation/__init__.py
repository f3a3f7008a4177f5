"""The evaluation: the paper's tables, from shards of tokens, pictures and clouds (docs/method.md 8)."""
