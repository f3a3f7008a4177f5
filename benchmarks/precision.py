"""What less precision costs, by kind of token: ``python -m benchmarks.precision``.

ViT-L of both families at their usual sizes. The weights are RANDOM, because trained ones can't be had everywhere: name
some with --encoder (a hub id, folder or file) and --image-size for the figures that count. Targets have unit variance,
so an error is in deviations. The other lines are what storing costs, whatever the encoder.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks._arguments import Arguments
from gap3d.features import attention
from gap3d.features.encoder import UNTRAINED, Encoder
from gap3d.features.encoders import load_encoder
from gap3d.features.families import DINOV2_WITH_REGISTERS, DINOV3
from gap3d.features.precision import deviations
from gap3d.features.tokens import StoreDtype, dequantise, pack, quantise, unpack
from gap3d.features.weights import random_model
from gap3d.settings import TargetSettings

LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_register_tokens": 4}
USUAL = {
    518: (DINOV2_WITH_REGISTERS, {**LARGE, "patch_size": 14, "image_size": 518}),
    512: (DINOV3, {**LARGE, "patch_size": 16, "image_size": 224, "intermediate_size": 4096}),
}


def pictures(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side, 3]: smooth colours, some of them cut out."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)
    smooth[:, :, : side // 4] = 0
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def stored(targets: Tensor, dtype: StoreDtype) -> Tensor:
    """Targets as they come out of the store."""
    if dtype == "int8":
        return dequantise(*quantise(targets)).float()
    return unpack(pack(targets, dtype), tuple(targets.shape), dtype).float()


def rows(exact: Encoder, rounded: Encoder, images: np.ndarray) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, its targets, the exact ones)."""
    truth = exact.encode(images)
    yield "bfloat16 encoder", rounded.encode(images), truth
    if attention.NAME in rounded.device:
        rounded._model.set_attn_implementation("sdpa")
        yield "torch's attention", rounded.encode(images), truth
    dtypes: tuple[StoreDtype, ...] = ("float16", "bfloat16", "int8")
    for dtype in dtypes:
        yield f"{dtype} store", stored(truth, dtype), truth


def table(exact: Encoder, rounded: Encoder, images: np.ndarray) -> str:
    """The result as text."""
    layout, side = exact.layout, images.shape[1]
    tokens = f"{layout.count} x {layout.width} tokens"
    lines = [
        f"{exact.family.title}, {exact.description['layers']} layers, {len(images)} images at {side}, {tokens}, "
        f"{rounded.device}; {exact.label}",
        f"{'against float32':>17} {'tokens':>10} {'mean cosine':>12} {'least cosine':>13} {'greatest error':>15}",
    ]
    for what, targets, truth in rows(exact, rounded, images):
        for kind, found in deviations(targets, truth, layout).items():
            if kind == "cls" and "store" in what:
                continue  # stored in float32
            lines.append(
                f"{what:>17} {kind:>10} {found.mean_cosine:12.7f} {found.least_cosine:13.7f} {found.error:15.4f}"
            )
    return "\n".join(lines)


def both(settings: TargetSettings, layers: int) -> Iterator[Encoder]:
    """The same encoder in float32 and in bfloat16."""
    for dtype in ("float32", "bfloat16"):
        changed = settings.model_copy(update={"dtype": dtype})
        if settings.encoder != UNTRAINED:
            yield load_encoder(changed)
            continue
        family, geometry = USUAL[settings.image_size]
        model = random_model(family, family.model_class.config_class(**geometry, num_hidden_layers=layers), seed=0)
        yield Encoder(model, changed, trained=False)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--encoder", help="a hub id, folder or file (default: random ViT-L of both families)")
    parser.add_argument("--image-size", type=int, default=518, help="for --encoder (default 518)")
    parser.add_size("--images", 2, 1)
    parser.add_size("--layers", 24, 1, "of the random ones")
    known = parser.read()
    sizes = [known.image_size] if known.encoder else list(USUAL)
    for size in sizes:
        exact, rounded = both(TargetSettings(encoder=known.encoder or UNTRAINED, image_size=size), known.layers)
        print(table(exact, rounded, pictures(known.images, size)), flush=True)


if __name__ == "__main__":
    main()
