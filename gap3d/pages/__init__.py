"""HTML pages of what was made: each opens from disk and asks nothing of a network."""
