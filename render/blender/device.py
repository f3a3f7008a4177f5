"""What Cycles renders on: chosen once when the child starts, proven, and held to for every image.

Cycles falls back to the CPU without a word when a GPU can't be had; here that is an error. Runs in the child process
alone. The GPU's way was written without a GPU at hand: only its refusals are tested.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bpy

from render.job import last_words

GPUS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")
"""In order of preference."""
DRIVERS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "OPTIX": ("libnvoptix", ("/dev/nvidia",)),
        "CUDA": ("libcuda", ("/dev/nvidia",)),
        "HIP": ("libamdhip64", ("/dev/kfd", "/dev/dri/")),
        "ONEAPI": ("libze_", ("/dev/dri/",)),
    }
)
"""On Linux: the library and the device files of a process that renders on one."""
PROOF_PIXELS = 8


@dataclass(frozen=True)
class Device:
    """One device: its interface (CPU or one of GPUS), the driver's name for it and Cycles' identifier."""

    kind: str
    name: str = ""
    identifier: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()

    @property
    def cycles(self) -> str:
        """The value of Cycles' own setting."""
        return "CPU" if self.kind == "CPU" else "GPU"


CPU = Device("CPU")


class Devices:
    """Cycles' devices in the preferences of this Blender."""

    def __init__(self) -> None:
        self.chosen = CPU

    def use(self, device: str) -> Device:
        """Choose auto, cpu, optix, cuda, hip, oneapi or metal, and prove it.

        Raises RuntimeError if the device is not there, or there and not what renders.
        """
        kind = device.upper()
        if kind not in ("AUTO", "CPU", *GPUS):
            raise RuntimeError(f"no device is called {device}: auto, cpu, {', '.join(GPUS).lower()}")
        wanted = GPUS if kind == "AUTO" else (kind,)
        found = [each for gpu in GPUS if gpu in wanted for each in available(gpu)]
        if kind not in ("AUTO", "CPU") and not found:
            there = ", ".join(str(each) for gpu in GPUS for each in available(gpu))
            raise RuntimeError(f"there is no {kind} device: Cycles sees the CPU{', ' + there if there else ' only'}")
        self.chosen = found[0] if found else CPU
        self.hold()
        if self.chosen is not CPU:
            self.prove()
        return self.chosen

    def hold(self) -> None:
        """Enable the chosen device and no other. Raises RuntimeError where Blender does not keep to it."""
        preferences = cycles_preferences()
        if self.chosen is CPU:
            if preferences.compute_device_type != "NONE":
                preferences.compute_device_type = "NONE"
            return
        preferences.compute_device_type = self.chosen.kind
        for entry in preferences.get_devices_for_type(self.chosen.kind):
            entry.use = entry.type == self.chosen.kind and entry.id == self.chosen.identifier
        if preferences.get_num_gpu_devices() != 1:
            raise RuntimeError(
                f"Cycles can't be held to {self.chosen}: it has {preferences.get_num_gpu_devices()} GPUs"
            )

    def prove(self) -> None:
        """Render a few pixels. Raises RuntimeError unless they are right and the chosen GPU's driver is at work."""
        try:
            value = rendered_white()
        except RuntimeError as error:
            raise RuntimeError(f"{self.chosen} does not render: {last_words(str(error))}") from error
        if abs(value - 1.0) > 0.02:
            raise RuntimeError(f"{self.chosen} renders white as {value:.3f}")
        if (missing := unopened(self.chosen.kind)) is not None:
            raise RuntimeError(f"{self.chosen} was not used: this process has not opened {missing}")


def cycles_preferences() -> Any:
    """The preferences that hold the devices."""
    return bpy.context.preferences.addons["cycles"].preferences


def available(kind: str) -> list[Device]:
    """The GPUs that Cycles sees through one interface; none where Blender was built without it."""
    preferences = cycles_preferences()
    if kind not in {name for name, *_ in preferences.get_device_types(bpy.context)}:
        return []
    devices = preferences.get_device_list(kind)
    return [Device(kind, name, identifier) for name, found, identifier, *_ in devices if found == kind]


def rendered_white() -> float:
    """The mean red of a picture of a world of strength 1, which is 1 wherever it is rendered, and 0 where it isn't."""
    scene = bpy.data.scenes.new("proof")
    world = bpy.data.worlds.new("proof")
    lens = bpy.data.cameras.new("proof")
    camera = bpy.data.objects.new("proof", lens)
    try:
        world.use_nodes = True
        background = next(node for node in world.node_tree.nodes if node.type == "BACKGROUND")
        background.inputs["Color"].default_value, background.inputs["Strength"].default_value = (1, 1, 1, 1), 1.0
        scene.world, scene.camera = world, camera
        scene.collection.objects.link(camera)
        scene.render.engine = "CYCLES"
        scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "GPU", 1, False
        scene.render.resolution_x = scene.render.resolution_y = PROOF_PIXELS
        scene.render.resolution_percentage = 100
        scene.render.threads_mode, scene.render.threads = "FIXED", 1
        scene.render.use_file_extension = False
        scene.render.image_settings.file_format = "PNG"
        scene.view_settings.view_transform = "Standard"
        with tempfile.TemporaryDirectory() as folder:
            scene.render.filepath = str(Path(folder) / "proof.png")
            bpy.ops.render.render(write_still=True, scene=scene.name)
            image = bpy.data.images.load(scene.render.filepath)
            pixels = image.pixels[:]
            bpy.data.images.remove(image)
    finally:
        bpy.data.objects.remove(camera)
        bpy.data.cameras.remove(lens)
        bpy.data.scenes.remove(scene)
        bpy.data.worlds.remove(world)
    return sum(pixels[::4]) / PROOF_PIXELS**2


def unopened(kind: str) -> str | None:
    """The driver's library or device file that this process has not opened, of those that ``kind`` needs."""
    if not sys.platform.startswith("linux") or kind not in DRIVERS:
        return None
    library, files = DRIVERS[kind]
    if library not in Path("/proc/self/maps").read_text():
        return library
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return None if any(name.startswith(files) for name in opened) else " or ".join(files)
