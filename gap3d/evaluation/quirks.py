"""What the released evaluation does otherwise than it should, each by a name (docs/method.md 8 and 9).

None holds unless the settings name it (``evaluation.quirks``); ``paper`` names all. A result says which held.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Table = Literal["alignment", "retrieval", "generation"]
ALL = "paper"


@dataclass(frozen=True)
class Quirk:
    """One of them.

    Attributes:
        table: whose numbers it changes.
        sentence: what it does, for people.
    """

    table: Table
    sentence: str


QUIRKS: Mapping[str, Quirk] = {
    "batch_means": Quirk(
        "alignment", "averages the means of batches of 64 samples, so those of a small last batch weigh more"
    ),
    "unsorted_list": Quirk(
        "retrieval", "cuts a top-10 that is not sorted after 1 and 5: only the recall at 10 means what it says"
    ),
    "float16_vectors": Quirk("retrieval", "compares vectors that were rounded to float16"),
    "inception_input": Quirk(
        "generation", "shows Inception-v3 pixels with ImageNet's statistics, on which its weights were not trained"
    ),
    "ray_depth": Quirk(
        "generation",
        "takes the planar depth of true objects for the length of the ray, and pixels at their corner: their clouds "
        "are bent, generated ones are not",
    ),
    "batch_order": Quirk(
        "generation",
        "starts PointNet++'s own sampling at the cloud's place in its batch of 64: features depend on the order",
    ),
    "unpaired": Quirk(
        "generation", "keeps the true pictures of objects whose generation failed: the two sets are of other objects"
    ),
}


def of_table(quirks: tuple[str, ...], table: Table) -> tuple[str, ...]:
    """Those of the named quirks that change a table's numbers, in the order of ``QUIRKS``."""
    return tuple(name for name, quirk in QUIRKS.items() if name in quirks and quirk.table == table)
