"""What Cycles renders on is what was asked for, or an error that says what is there. No GPU is used here."""

from blender_files import run_blender

ASK = """
import bpy
from render.blender import device, scene

def refusal(operation, *arguments):
    try:
        return f"granted {operation(*arguments)}"
    except RuntimeError as error:
        return str(error)

devices = device.Devices()
gpus = [str(each) for gpu in device.GPUS for each in device.available(gpu)]
assert refusal(scene.use_device, "cpu") == "granted CPU"
assert refusal(scene.use_device, "auto") == f"granted {(gpus or ['CPU'])[0]}"
assert "auto, cpu, optix" in refusal(scene.use_device, "abacus")
for kind in device.GPUS:
    if not device.available(kind):
        said = refusal(scene.use_device, kind.lower())
        assert f"there is no {kind} device" in said and "CPU" in said, said
"""
PROOF = """
# A device that the driver does not have is never held to, and never proven by what the CPU renders in its place. Of a
# kind that this machine lacks: whatever GPU is here, its driver is at work already.
built = {name for name, *_ in device.cycles_preferences().get_device_types(bpy.context)}
absent = next(kind for kind in device.DRIVERS if kind in built and not device.available(kind))
devices.hold()
assert device.cycles_preferences().compute_device_type == "NONE"
assert abs(device.rendered_white() - 1.0) < 0.02
devices.chosen = device.Device(absent, "imagined", f"{absent}_imagined")
said = refusal(devices.prove)
assert f"has not opened {device.DRIVERS[absent][0]}" in said, said
assert f"can't be held to {absent} imagined" in refusal(devices.hold), refusal(devices.hold)
devices.chosen = device.CPU
devices.hold()
assert device.cycles_preferences().compute_device_type == "NONE"
"""


def test_a_device_that_is_not_there_is_refused_by_name():
    run_blender(ASK)


def test_what_the_cpu_renders_does_not_prove_a_gpu():
    run_blender(ASK + PROOF)
