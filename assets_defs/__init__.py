"""Thin Dagster assets over the stages: resources, automation, checks; no logic."""
