"""What Cycles renders on is what was asked for, or an error that says what is there. No GPU is used here."""

from blender_files import run_blender

ASK = """
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
# A device that the driver does not have is never held to, and never proven by what the CPU renders in its place.
imagined = device.Device("CUDA", "imagined", "CUDA_imagined")
devices.chosen = imagined
assert "can't be held to CUDA imagined" in refusal(devices.hold), refusal(devices.hold)
if not gpus:
    assert abs(device.rendered_white() - 1.0) < 0.02
    assert "has not opened libcuda" in refusal(devices.prove), refusal(devices.prove)
devices.chosen = device.CPU
devices.hold()
assert device.cycles_preferences().compute_device_type == "NONE"
"""


def test_a_device_that_is_not_there_is_refused_by_name():
    run_blender(ASK)


def test_what_the_cpu_renders_does_not_prove_a_gpu():
    run_blender(ASK + PROOF)
