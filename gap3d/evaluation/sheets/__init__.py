"""Run sheets that come with the package, as TOML: the paper's Tables 3 and 4, and its multimodal prompts."""
