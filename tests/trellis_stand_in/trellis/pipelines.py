"""STAND-IN: the two pipelines. Objects are spheres of points whose place comes from the noise."""

import os
import time
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from trellis.representations import Gaussian, MeshExtractResult

COND = (1, 1374, 1024)
CHANNELS, RESOLUTION = 8, 16


class Pipeline:
    @classmethod
    def from_pretrained(cls, path):
        if path.endswith("broken"):
            raise RuntimeError("Found no NVIDIA driver on your system")
        pipeline = cls()
        pipeline.path = path
        return pipeline

    @property
    def device(self):
        return torch.device("cpu")

    def to(self, device):
        pass

    def cuda(self):
        pass

    def sample_sparse_structure(self, cond: dict, num_samples: int = 1, sampler_params: dict = {}):  # noqa: B006
        self.check(cond)
        assert num_samples == 1 and sampler_params == {}
        noise = torch.randn(num_samples, CHANNELS, RESOLUTION, RESOLUTION, RESOLUTION)
        mean = float(cond["cond"].mean())
        if mean == 1.0:
            os.kill(os.getpid(), 11)  # as a CUDA extension does
        if mean == 2.0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if mean == 3.0:
            raise RuntimeError("spconv: no kernel")
        if mean == 4.0:
            time.sleep(60)
        occupied = noise[:, 0] > (10 if mean == 5.0 else 0)
        return torch.argwhere(occupied).int()  # [N, 4]: sample, x, y, z

    def sample_slat(self, cond: dict, coords, sampler_params: dict = {}):  # noqa: B006
        self.check(cond)
        assert coords.dtype == torch.int32 and coords.shape[1] == 4 and sampler_params == {}
        return SimpleNamespace(
            coords=coords, feats=torch.randn(coords.shape[0], CHANNELS), mean=float(cond["cond"].mean())
        )

    def decode_slat(self, slat, formats=["mesh", "gaussian", "radiance_field"]):  # noqa: B006
        made = {}
        if "mesh" in formats:
            made["mesh"] = [MeshExtractResult()]
        if "gaussian" in formats:
            made["gaussian"] = [Gaussian(slat)]
        assert set(made) == set(formats)
        return made


class TrellisImageTo3DPipeline(Pipeline):
    def check(self, cond):
        assert set(cond) == {"cond", "neg_cond"}
        assert tuple(cond["cond"].shape) == tuple(cond["neg_cond"].shape) == COND
        assert cond["cond"].dtype == cond["neg_cond"].dtype == torch.float32
        assert not cond["neg_cond"].any()
        assert not torch.is_grad_enabled()

    def preprocess_image(self, image):
        if image.mode != "RGBA":
            raise RuntimeError("rembg would be asked to remove the background")
        return image.convert("RGB").resize((518, 518), Image.Resampling.LANCZOS)

    def get_cond(self, image):
        torch.randn(7)  # conditions come before the seed: what they draw changes nothing
        level = np.asarray(image[0], dtype=np.float32).mean() / 255
        cond = torch.full(COND, float(level))
        return {"cond": cond, "neg_cond": torch.zeros_like(cond)}

    @torch.no_grad()
    def run(
        self,
        image: Image.Image,
        num_samples: int = 1,
        seed: int = 42,
        sparse_structure_sampler_params: dict = {},  # noqa: B006
        slat_sampler_params: dict = {},  # noqa: B006
        formats=["mesh", "gaussian", "radiance_field"],  # noqa: B006
        preprocess_image: bool = True,
    ):
        assert isinstance(image, Image.Image)
        if preprocess_image:
            image = self.preprocess_image(image)
        cond = self.get_cond([image])
        torch.manual_seed(seed)
        coords = self.sample_sparse_structure(cond, num_samples, sparse_structure_sampler_params)
        return self.decode_slat(self.sample_slat(cond, coords, slat_sampler_params), formats)


class TrellisTextTo3DPipeline(Pipeline):
    def check(self, cond):
        assert tuple(cond["cond"].shape) == tuple(cond["neg_cond"].shape) == (1, 77, 768)

    def get_cond(self, prompt):
        assert isinstance(prompt, list) and all(isinstance(text, str) for text in prompt)
        return {"cond": torch.full((1, 77, 768), float(len(prompt[0]) * 100)), "neg_cond": torch.ones(1, 77, 768)}

    @torch.no_grad()
    def run(
        self,
        prompt: str,
        num_samples: int = 1,
        seed: int = 42,
        sparse_structure_sampler_params: dict = {},  # noqa: B006
        slat_sampler_params: dict = {},  # noqa: B006
        formats=["mesh", "gaussian", "radiance_field"],  # noqa: B006
    ):
        cond = self.get_cond([prompt])
        torch.manual_seed(seed)
        coords = self.sample_sparse_structure(cond, num_samples, sparse_structure_sampler_params)
        return self.decode_slat(self.sample_slat(cond, coords, slat_sampler_params), formats)


print("STAND-IN for TRELLIS: what it prints goes to the log")  # noqa: T201
