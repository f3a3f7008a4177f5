"""The prompt against one put together by hand from the words of docs/method.md 1.3 and the tokenizer."""

import pytest

from gap3d.aligner.prompt import QWEN_IDS, Prompt
from gap3d.aligner.random_vlm import SPECIAL, byte_tokenizer

CAPTIONS = ["a red chair", "", "Une théière\nà deux anses 茶", "x" * 700]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return Prompt(tokenizer, 64)


def by_hand(tokenizer, caption):
    """The text of docs/method.md 1.3 as one string; the tokenizer has 278 tokens, the added ones follow."""
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPlease generate image based on the following caption: {caption}<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n"
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"][: 512 - 65] + [278] + [280] * 64


@pytest.mark.parametrize("caption", CAPTIONS, ids=["plain", "empty", "unicode", "long"])
def test_the_ids_are_those_of_the_whole_text(prompt, tokenizer, caption):
    assert prompt.ids(caption) == by_hand(tokenizer, caption)


def test_each_byte_of_the_caption_is_in_the_ids(prompt, tokenizer):
    assert "caption: Une théière\nà deux anses 茶<|im_end|>" in tokenizer.decode(prompt.ids(CAPTIONS[2])[:-65])


@pytest.mark.parametrize("soft_tokens", [64, 5])
def test_text_is_cut_on_the_right_to_what_soft_tokens_leave(tokenizer, soft_tokens):
    ids = Prompt(tokenizer, soft_tokens).ids("x" * 700)
    assert len(ids) == 512
    assert ids[-soft_tokens - 2 :] == [*tokenizer("x")["input_ids"], 278, *[280] * soft_tokens]


def test_half_a_character_costs_no_batch(prompt):
    assert prompt.ids("a \ud800 chair") == prompt.ids("a ? chair")


def test_a_batch_is_its_prompts_padded_on_the_right(prompt, tokenizer):
    batch = prompt.batch(CAPTIONS)
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for row, caption in enumerate(CAPTIONS):
        whole = by_hand(tokenizer, caption)[:-64]
        assert batch.lengths[row] == len(whole)
        assert batch.ids[row].tolist() == whole + [pad] * (batch.ids.shape[1] - len(whole))
        assert batch.mask[row].tolist() == [place < len(whole) for place in range(batch.ids.shape[1])]
    assert not batch.images.any()


def test_an_image_stands_where_the_editing_template_has_it(prompt, tokenizer):
    batch = prompt.batch(["a lamp", "it is <|image_pad|> red"], [0, 3])
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPlease generate image based on the following caption: Create a precise replica of: "
        "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>\n"
        "but: it is <|image_pad|> red<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert batch.ids[1].tolist() == [*ids, 278]
    first = ids.index(tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    assert batch.images[1].nonzero().flatten().tolist() == [first, first + 1, first + 2]
    assert not batch.images[0].any()


def test_an_image_that_does_not_fit_is_told(prompt):
    with pytest.raises(ValueError, match="an image of 400 embeddings does not fit in a prompt"):
        prompt.batch(["red"], [400])


def test_a_tokenizer_of_the_real_size_has_the_ids_of_the_released_weights():
    assert len(SPECIAL) == 22
    assert Prompt(byte_tokenizer(151643 - 256), 64).special == QWEN_IDS


def test_added_tokens_that_a_tokenizer_has_are_asked_by_name():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[/IMG]", "<image>"], special_tokens=True)
    assert Prompt(tokenizer, 2).ids("a")[-3:] == [278, 280, 280]
    assert Prompt(tokenizer, 2).vocabulary == 278


def test_a_tokenizer_without_special_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), unk_token="<|endoftext|>")
    with pytest.raises(ValueError, match=r"the tokenizer has no <\|im_start\|>"):
        Prompt(other, 2)
