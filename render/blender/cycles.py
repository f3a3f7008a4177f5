"""What Cycles is told, all of it: nothing is left to the factory's defaults, which differ between Blender's versions.

The values are those of docs/method.md 2.1, else what Blender 3.0 did, which the paper's renderer ran on. Runs in the
child process alone.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bpy

SAMPLING: Mapping[str, Any] = MappingProxyType(
    {
        "use_animated_seed": False,
        "sampling_pattern": "TABULATED_SOBOL",
        "scrambling_distance": 1.0,
        "auto_scrambling_distance": False,
        "use_sample_subset": False,
        "sample_offset": 0,
        "use_layer_samples": "IGNORE",
        "time_limit": 0.0,
        "adaptive_min_samples": 0,
        "light_sampling_threshold": 0.01,
        "direct_light_sampling_type": "MULTIPLE_IMPORTANCE_SAMPLING",
        "use_light_tree": False,  # 3.0 had none
        "use_guiding": False,
        "use_auto_tile": True,
        "tile_size": 2048,
    }
)
PATHS: Mapping[str, Any] = MappingProxyType(
    {
        "max_bounces": 12,
        "diffuse_bounces": 1,
        "glossy_bounces": 1,
        "transmission_bounces": 3,
        "transparent_max_bounces": 3,
        "volume_bounces": 0,
        "min_light_bounces": 0,
        "min_transparent_bounces": 0,
        "sample_clamp_direct": 0.0,
        "sample_clamp_indirect": 10.0,
        "blur_glossy": 1.0,
        "caustics_reflective": True,
        "caustics_refractive": True,
        "use_fast_gi": False,
        "volume_step_rate": 1.0,
        "volume_max_steps": 1024,
    }
)
GEOMETRY: Mapping[str, Any] = MappingProxyType(
    {
        "feature_set": "SUPPORTED",
        "shading_system": False,
        "dicing_rate": 1.0,
        "max_subdivisions": 12,
        "offscreen_dicing_scale": 4.0,
        "dicing_camera": None,
        "use_camera_cull": False,
        "use_distance_cull": False,
        "texture_limit": "OFF",
        "texture_limit_render": "OFF",
        "debug_use_spatial_splits": False,
        "debug_use_hair_bvh": True,
        "debug_use_compact_bvh": False,
        "debug_bvh_time_steps": 0,
    }
)
FILM: Mapping[str, Any] = MappingProxyType(
    {
        "pixel_filter_type": "BLACKMAN_HARRIS",
        "filter_width": 1.0,
        "film_exposure": 1.0,
        "film_transparent_glass": False,
        "rolling_shutter_type": "NONE",
        "denoiser": "OPENIMAGEDENOISE",
        "denoising_input_passes": "RGB_ALBEDO_NORMAL",
        "denoising_use_gpu": False,
    }
)
FRAME: Mapping[str, Any] = MappingProxyType(
    {
        "engine": "CYCLES",
        "resolution_percentage": 100,
        "pixel_aspect_x": 1.0,
        "pixel_aspect_y": 1.0,
        "use_border": False,
        "use_crop_to_border": False,
        "film_transparent": True,
        "dither_intensity": 1.0,
        "filter_size": 1.5,
        "frame_map_old": 100,
        "frame_map_new": 100,
        "use_motion_blur": False,
        "use_simplify": False,
        "use_freestyle": False,
        "use_multiview": False,
        "use_single_layer": False,
        "use_sequencer": False,
        "use_persistent_data": False,
        "use_render_cache": False,
        "use_file_extension": False,
        "use_overwrite": True,
        "use_placeholder": False,
        "metadata_input": "SCENE",
        "hair_type": "STRAND",
        "hair_subdiv": 0,
        "compositor_device": "CPU",
        "compositor_precision": "FULL",
    }
)
PICTURE: Mapping[str, Any] = MappingProxyType(
    {
        "file_format": "PNG",
        "color_mode": "RGBA",
        "color_depth": "8",
        "compression": 15,
        "color_management": "FOLLOW_SCENE",
        "use_preview": False,
    }
)
COLOURS: Mapping[str, Any] = MappingProxyType(
    {
        "view_transform": "Filmic",
        "look": "None",
        "exposure": 0.0,
        "gamma": 1.0,
        "use_curve_mapping": False,
        "use_white_balance": False,
        "use_hdr_view": False,
    }
)
LAYER: Mapping[str, Any] = MappingProxyType(
    {
        "use": True,
        "material_override": None,
        "world_override": None,
        "samples": 0,
        "pass_alpha_threshold": 0.5,
        "use_sky": True,
        "use_ao": True,
        "use_solid": True,
        "use_strand": True,
        "use_volumes": True,
        "use_motion_blur": False,
        "use_freestyle": False,
    }
)
LAYER_CYCLES: Mapping[str, Any] = MappingProxyType(
    {
        "use_denoising": True,  # the scene's use_denoising decides
        "denoising_store_passes": False,
        "pass_debug_sample_count": False,
        "use_pass_volume_direct": False,
        "use_pass_volume_indirect": False,
        "use_pass_shadow_catcher": False,
    }
)
CURVES: Mapping[str, Any] = MappingProxyType({"shape": "RIBBONS", "subdivisions": 2})


def apply(values: Mapping[str, Any], target: Any) -> None:
    """Set properties of one of Blender's structures. Raises AttributeError where this Blender has no such property."""
    for name, value in values.items():
        setattr(target, name, value)


def set_image(scene: bpy.types.Scene, path: Path, resolution: int, threads: int) -> None:
    """What is written where: a square 8-bit RGBA PNG with straight alpha, through Filmic."""
    render = scene.render
    apply(FRAME, render)
    render.filepath = str(path)
    render.resolution_x = render.resolution_y = resolution
    render.threads_mode, render.threads = "FIXED", threads
    # Date, host and duration would be written into the PNG: the same image must be the same bytes.
    for name in (each.identifier for each in render.bl_rna.properties if each.identifier.startswith("use_stamp")):
        setattr(render, name, False)
    apply(PICTURE, render.image_settings)
    scene.display_settings.display_device = "sRGB"
    apply(COLOURS, scene.view_settings)


def set_cycles(
    scene: bpy.types.Scene,
    *,
    device: str,
    samples: int,
    threshold: float,
    denoise: bool,
    prefilter: str,
    denoise_quality: str,
    seed: int,
) -> None:
    """How it is rendered; ``device`` is CPU or GPU, a threshold of 0 takes all samples everywhere."""
    for values in (SAMPLING, PATHS, GEOMETRY, FILM):
        apply(values, scene.cycles)
    scene.cycles.device = device
    scene.cycles.samples = samples
    scene.cycles.use_adaptive_sampling = threshold > 0
    scene.cycles.adaptive_threshold = threshold
    scene.cycles.use_denoising = denoise
    scene.cycles.denoising_prefilter = prefilter.upper()
    scene.cycles.denoising_quality = denoise_quality.upper()
    scene.cycles.seed = seed
    apply(CURVES, scene.cycles_curves)


def set_layer(layer: bpy.types.ViewLayer, depth: bool) -> None:
    """Everything is in the one layer; of the passes the colour, and z where it is asked for."""
    apply(LAYER, layer)
    apply(LAYER_CYCLES, layer.cycles)
    for name in (each.identifier for each in layer.bl_rna.properties if each.identifier.startswith("use_pass_")):
        setattr(layer, name, name == "use_pass_combined" or (name == "use_pass_z" and depth))
