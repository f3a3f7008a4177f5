"""Evaluation: the paper's tables over token sets, pictures and point clouds of any model."""
