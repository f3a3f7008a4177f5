"""What the reference implementation of the diffusion transformer made, and the transformer with its weights."""

from shared_data import golden, weights_of

from gap3d.aligner.dit import DiT, Geometry
from gap3d.aligner.naming import DIT, RELEASED_DIT, from_released
from gap3d.features.tokens import TokenLayout


def reference():
    """The transformer with the reference's weights, the layout of its tokens, and all tensors."""
    config, tensors = golden("dit_small.safetensors")
    dit = DiT(
        Geometry(
            channels=config["in_channels"],
            registers=config["registers"],
            condition_width=config["cond_dim"],
            width=config["dim"],
            blocks=config["layers"],
            heads=config["heads"],
        )
    )
    named = from_released({RELEASED_DIT + name: tensor for name, tensor in weights_of(tensors).items()})
    dit.load_state_dict({name.removeprefix(DIT): tensor for name, tensor in named.items()})
    layout = TokenLayout(config["registers"], (config["grid"], config["grid"]), config["in_channels"])
    return dit, layout, tensors


def tokens(tensors, kind, layout):
    """One of the file's token sets as [B, T, C]."""
    cls, registers, patches = (tensors[f"{kind}.{part}"] for part in ("cls", "reg", "patch"))
    return layout.join(cls, registers, patches.flatten(2).transpose(1, 2))
