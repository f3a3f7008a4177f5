"""The encoder on a GPU: streams change no bit, and memory decides about the size of a pass."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pictures import of_images, pairs, run_images, write_tar

from gap3d.features.encoders import load_encoder
from gap3d.features.passes import GPU_PASS
from gap3d.records import SystemicFault
from gap3d.settings import TargetSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch.cuda sees")

SETTINGS = TargetSettings(encoder="random-small", image_size=518, dtype="bfloat16")


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 518, 518, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(SETTINGS, device="cuda")


@pytest.fixture
def whole_memory():
    """Undoes a limit of this process's share of the GPU."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@torch.inference_mode()
def plainly(encoder, pixels):
    """One pass after another on one stream, copies that wait, no page-locked memory."""
    found = []
    for start in range(0, len(pixels), encoder.images_per_pass):
        chunk = torch.as_tensor(pixels[start : start + encoder.images_per_pass])
        rest = encoder.images_per_pass - len(chunk)
        filled = torch.cat([chunk, chunk.new_zeros(rest, *chunk.shape[1:])]).to(encoder._device)
        found.append(encoder._targets(filled)[: len(chunk)].cpu())
        torch.cuda.synchronize()
    return torch.cat(found)


@pytest.mark.parametrize("count", [1, GPU_PASS, 3 * GPU_PASS + 5])
def test_streams_change_no_bit(encoder, count):
    pixels = images(count)
    targets = encoder.encode(pixels)
    assert torch.equal(targets, plainly(encoder, pixels))
    assert targets.is_pinned()


def test_calls_of_two_threads_change_no_bit(encoder):
    batches = [images(2 * GPU_PASS + 1, seed) for seed in range(6)]
    wanted = [plainly(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            for found, plain in zip(threads.map(encoder.encode, batches), wanted, strict=True):
                assert torch.equal(found, plain)


def test_a_target_does_not_depend_on_its_batch(encoder):
    pixels = images(GPU_PASS + 3)
    together = encoder.encode(pixels)
    assert torch.equal(encoder.encode(pixels[::-1].copy()).flip(0), together)
    for index in (0, 7, GPU_PASS + 2):
        assert torch.equal(encoder.encode(pixels[index : index + 1])[0], together[index])


def test_it_is_near_the_cpu(encoder):
    exact = load_encoder(SETTINGS.model_copy(update={"dtype": "float32"}), device="cpu").encode(images(2))
    found = encoder.encode(images(2))
    assert torch.nn.functional.cosine_similarity(found, exact, dim=-1).min() > 0.9995


def test_memory_in_use_does_not_grow_from_call_to_call(encoder):
    pixels = images(4 * GPU_PASS)
    for _ in range(2):
        encoder.encode(pixels)
    held = torch.cuda.memory_reserved()
    for _ in range(5):
        encoder.encode(pixels)
    assert torch.cuda.memory_reserved() <= held


def test_a_gpu_with_little_memory_gets_smaller_passes_and_says_so(encoder, whole_memory):
    assert encoder.images_per_pass == GPU_PASS
    assert "passes of" not in encoder.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    encoder.encode(images(3 * GPU_PASS))
    need = torch.cuda.max_memory_allocated() - base
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.4 * need) / total)
    small = load_encoder(SETTINGS, device="cuda")
    assert small.images_per_pass < GPU_PASS
    assert GPU_PASS % small.images_per_pass == 0
    assert small.device.endswith(f", passes of {small.images_per_pass}")
    pixels = images(GPU_PASS + 1)
    targets = small.encode(pixels)
    assert torch.equal(targets, plainly(small, pixels))
    assert torch.nn.functional.cosine_similarity(targets, encoder.encode(pixels), dim=-1).min() > 0.9999


def test_a_gpu_without_room_for_one_image_is_no_fault_of_the_images(whole_memory):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4 * 2**20) / total)
    with pytest.raises(SystemicFault, match="does not fit the GPU's memory"):
        load_encoder(SETTINGS.model_copy(update={"image_size": 4 * SETTINGS.image_size}), device="cuda")


def test_the_stage_runs_on_it(tmp_path):
    write_tar(tmp_path / "tars" / "0.tar", pairs(0, 2 * GPU_PASS + 3))
    settings = of_images(tmp_path / "store", tmp_path / "tars", compute={"workers": 0, "batch_size": GPU_PASS})
    report = run_images(settings)
    assert report.by_status("targets") == {"ok": 2 * GPU_PASS + 3}
    assert report.utilisation("targets").images == 2 * GPU_PASS + 3
