"""The families of encoders that there are."""

from collections.abc import Collection

from gap3d.features.dinov2 import Dinov2
from gap3d.features.dinov3 import Dinov3
from gap3d.features.family import Family

DINOV2_WITH_REGISTERS = Dinov2(registers=True)
DINOV2 = Dinov2(registers=False)
DINOV3 = Dinov3()
FAMILIES: tuple[Family, ...] = (DINOV2_WITH_REGISTERS, DINOV2, DINOV3)
TITLES = ", ".join(family.title for family in FAMILIES)


def family_of(model_type: str) -> Family:
    """The family of a configuration of transformers.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise ValueError(f"is a {model_type}, and none of: {TITLES}")


def family_of_names(names: Collection[str]) -> Family:
    """The family whose authors give weights these names.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if family.owns(names):
            return family
    raise ValueError(f"has weights such as {', '.join(sorted(names)[:3])}: those of none of: {TITLES}, as published")
