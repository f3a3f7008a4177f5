"""The condition and its gradient beside one pass over the whole prompt: ``python -m benchmarks.condition``.

A language model of Qwen2.5-VL's kind at a twentieth of its size reads captions, forward and backward to the soft
tokens, in both ways; interleaved repeats, medians of the ratios. Kept: what autograd holds between the passes.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._arguments import Arguments
from benchmarks._timing import interleaved, ratio
from gap3d.aligner.random_vlm import ROWS, byte_tokenizer
from gap3d.aligner.vlm import Conditioner
from gap3d.aligner_settings import AlignerSettings

WIDTH = 512
CAPTIONS = ("a red chair", "a lamp with a green shade", "two apples on a white plate", "a small wooden boat")


def conditioner(layers: int) -> Conditioner:
    """Random weights; grouped heads and the feed-forward network in the proportions of the 3B model."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 43 // 8,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )
    model = Qwen2_5_VLTextModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return Conditioner(model, byte_tokenizer(), AlignerSettings(vlm="random-small"))


def whole_prompt(made: Conditioner, texts: list[str]) -> Tensor:
    """As the released code: soft tokens written into the embeddings of the prompt, all of it with gradients."""
    prompts, count = made.prompt.batch(texts), made.prompt.soft_tokens
    rows, longest = prompts.ids.shape
    own = prompts.ids < made.prompt.vocabulary
    embedded = torch.where(own[..., None], made.language_model.embed_tokens(prompts.ids * own), made.added)
    embedded = torch.cat([embedded, embedded.new_zeros(rows, count, made.width)], dim=1)
    places = prompts.lengths[:, None] + torch.arange(count)  # [B, M]
    embedded[torch.arange(rows)[:, None], places] = made.soft_tokens
    mask = torch.arange(longest + count) < prompts.lengths[:, None] + count
    hidden = made.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
    return hidden[torch.arange(rows)[:, None], places]


def kept(made: Conditioner, condition: Callable[[], Tensor]) -> int:
    """Bytes of activations that the backward pass waits for; weights are not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = condition()
    del result
    return sum(held.values())


def gradient(made: Conditioner, condition: Callable[[], Tensor]) -> Tensor:
    """Of the soft tokens: one forward and one backward."""
    result = condition()
    made.soft_tokens.grad = None
    result.backward(torch.linspace(-1, 1, result.numel()).view_as(result))
    assert made.soft_tokens.grad is not None
    return made.soft_tokens.grad


def main() -> None:
    """The program."""
    parser = Arguments(__doc__)
    parser.add_size("--batch", 8, 2)
    parser.add_size("--layers", 12, 1)
    parser.add_size("--repeats", 5, 1)
    chosen = parser.read()
    made = conditioner(chosen.layers)
    texts = [CAPTIONS[row % len(CAPTIONS)] for row in range(chosen.batch)]
    ways: dict[str, Any] = {"ours": lambda: made(texts), "whole": lambda: whole_prompt(made, texts)}
    results = {name: gradient(made, way) for name, way in ways.items()}
    difference = (results["ours"] - results["whole"]).norm() / results["whole"].norm()
    passes = {name: partial(gradient, made, way) for name, way in ways.items()}
    times = interleaved(passes, chosen.repeats, time.process_time)  # what else the machine does counts less in it
    bytes_kept = {name: kept(made, way) for name, way in ways.items()}
    lengths = made.prompt.batch(texts).lengths
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"{chosen.batch} prompts of {lengths.min()} to {lengths.max()} ids and {made.prompt.soft_tokens} soft tokens, "
        f"width {WIDTH}, {chosen.layers} layers, float32, {torch.get_num_threads()} threads"
    )
    print(
        f"condition and gradient: {middle['ours']:.2f} s of processor time, "
        f"whole prompt {middle['whole']:.2f} s: {ratio(times['whole'], times['ours']):.2f} x as much"
    )
    print(
        f"kept for the backward pass: {bytes_kept['ours'] / 1e6:.0f} MB, "
        f"whole prompt {bytes_kept['whole'] / 1e6:.0f} MB: {bytes_kept['whole'] / bytes_kept['ours']:.2f} x as much"
    )
    print(f"gradients differ by {difference:.1e} of their norm")


if __name__ == "__main__":
    main()
