"""The evaluation's seeds, from an object's global index (docs/method.md 8.3, decision 18).

The released code counts within the shard of a process; here the index is that of the whole set, as with one process.
"""

import random
from typing import Literal

Method = Literal["gap3d", "trellis-image", "trellis-text"]
BASE = 42
IMAGE, TEXT = 1009, 2003
MASK = 0x7FFFFFFF


def image_seed(index: int) -> int:
    """What GAP3D's objects and those of the image baseline begin from."""
    return (BASE * IMAGE + index) & MASK


def text_seed(index: int) -> int:
    """What the objects of the text baseline begin from, and the draw of the caption."""
    return (BASE * TEXT + index) & MASK


def caption_of(index: int, captions: int) -> int:
    """Which of so many captions an object is generated from, by GAP3D and the text baseline alike."""
    return random.Random(text_seed(index)).randint(0, captions - 1)


def view_of(index: int, views: int) -> int:
    """Which of so many views the image baseline sees."""
    return random.Random(image_seed(index)).randint(0, views - 1)


def seed_of(method: Method, index: int, choice: int) -> int:
    """The seed that TRELLIS gets.

    Args:
        method: whose object it is.
        index: of the object.
        choice: index of its caption; of its view for the image baseline.
    """
    base = text_seed(index) if method == "trellis-text" else image_seed(index)
    return (base + choice) & MASK
