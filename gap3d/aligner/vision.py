"""Images in the prompt: the visual tower of Qwen2.5-VL (docs/method.md 4, inference only)."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gap3d.features.images import resize_and_crop, without_alpha

SIDE = 448  # pixels of the square that is cut from an image
PIXEL_LIMIT = 50_000_000  # of a long strip on its way to that square


class VisualTower(nn.Module):
    """Images to embeddings of the language model, frozen.

    Args:
        model: of transformers, ``Qwen2_5_VisionTransformerPretrainedModel``.
        processor: its image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor

    @torch.no_grad()
    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings [N, K, H] of N images; K = 256 for Qwen2.5-VL.

        Raises:
            Failure: ``too_large`` where an image is a very long strip.
        """
        inputs = self.processor(images=[square(image) for image in images], return_tensors="pt")
        weights = self.model.patch_embed.proj.weight
        patches = inputs["pixel_values"].to(weights.device, weights.dtype)  # [N * patches, 3 * 2 * P * P]
        grid = inputs["image_grid_thw"].to(weights.device)  # [N, (time, rows, columns)] of patches
        merged = self.model(patches, grid_thw=grid).pooler_output  # [N * K, H]
        return merged.unflatten(0, (len(images), -1))


def square(image: Image.Image) -> Image.Image:
    """RGB on black (docs/method.md, decision 11), shorter side to 448 with Pillow's bicubic filter, centre 448 x 448.

    Raises:
        Failure: see ``resize_and_crop``.
    """
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return resize_and_crop(without_alpha(colours, "black"), SIDE, PIXEL_LIMIT)
