"""What is asked of a Blender in tests: small pictures of one object."""

import pytest

from gap3d.cameras import look_at_origin
from gap3d.records import Failure
from gap3d.settings import RenderSettings
from render.job import Image, Mesh, Model, View
from render.worker import Blender

TINY = RenderSettings(resolution=32, samples=1, denoise=False)
DEEP = TINY.model_copy(update={"depth": True})
VIEW = View(look_at_origin(30.0, 30.0, 2.0), 40.0)


def failure_of(blender: Blender, model: Model) -> Failure:
    with pytest.raises(Failure) as caught:
        blender.load(model)
        blender.render(VIEW, TINY)
    return caught.value


def serves(blender: Blender, model: Model) -> tuple[Mesh, Image]:
    return blender.load(model), blender.render(VIEW, TINY)
