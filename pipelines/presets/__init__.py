"""Settings for common uses, as TOML."""
