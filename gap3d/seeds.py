"""Randomness of one object: the same on every machine and in every run."""

import hashlib

import numpy as np


def generator(object_id: str, seed: int, purpose: str = "") -> np.random.Generator:
    """A generator that depends on the object, the settings' seed, and what it is for.

    Args:
        object_id: which object.
        seed: of the settings.
        purpose: one word; draws for different purposes are independent.
    """
    text = f"{seed}:{object_id}:{purpose}" if purpose else f"{seed}:{object_id}"
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest())))
