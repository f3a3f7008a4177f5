"""Extractors of picture and text features: against the networks of their authors, and what is said without weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gap3d.evaluation.extractors import load_pictures
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.features.encoder import UNTRAINED_MARK
from gap3d.metrics.extractors import clip, inception
from gap3d.metrics.extractors.clip import ClipFeatures, clip_score
from gap3d.metrics.extractors.dinov2 import Dinov2Features
from gap3d.metrics.extractors.inception import InceptionFeatures
from gap3d.metrics.extractors.inception_v3 import InceptionV3
from gap3d.metrics.extractors.pointnet import PointFeatures
from gap3d.records import Failure, Status, SystemicFault

# Of torchvision 0.28's own inception_v3, with the weights and the input of the test: six features, then mean and
# deviation of all; and the first six with transform_input=True.
TORCHVISION = (1.9183478, 0.0, 4.5610604, 6.84001, 10.0427456, 2.2828038, 10.4114141, 14.3998556)
TRANSFORMED = (0.8757408, 0.0, 2.6404684, 3.396016, 4.9822721, 1.1928825)


def picture(seed=0, size=(70, 64), mode="RGB"):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (8, 8, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode).resize(size, Image.Resampling.BICUBIC)


@torch.no_grad()
def fill(network):
    """Weights that numpy makes, norms included, in the order of the names."""
    rng = np.random.Generator(np.random.PCG64(7))
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.ndim > 1:
            values = (2 / tensor[0].numel()) ** 0.5 * rng.standard_normal(tensor.shape)
        elif name.endswith(("running_var", ".weight")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        elif tensor.ndim == 1:
            values = 0.1 * rng.standard_normal(tensor.shape)
        else:
            continue
        tensor.copy_(torch.from_numpy(values))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file with the names of torchvision's, those of its classifier included."""
    network = InceptionV3()
    fill(network)
    path = tmp_path_factory.mktemp("inception") / "inception_v3.pth"
    torch.save({**network.state_dict(), "fc.bias": torch.zeros(1000), "AuxLogits.fc.bias": torch.zeros(1000)}, path)
    return path


@torch.inference_mode()
def test_inception_is_torchvisions(inception_file):
    extractor = InceptionFeatures(str(inception_file), "clean", device="cpu")
    assert extractor.width == 2048 and extractor.trained
    pixels = np.random.Generator(np.random.PCG64(8)).standard_normal((1, 3, 299, 299))
    found = extractor.forward(torch.from_numpy(pixels).float())[0]
    torch.testing.assert_close(
        [*found[:6].tolist(), float(found.mean()), float(found.std())], [*TORCHVISION], rtol=1e-5, atol=1e-5
    )
    # What transform_input=True does to ImageNet's statistics, which is the difference of the two modes.
    scale, shift = (torch.tensor(values)[:, None, None] for values in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    shown = torch.from_numpy(pixels).float() * (scale / 0.5) + (shift - 0.5) / 0.5
    torch.testing.assert_close(extractor.forward(shown)[0, :6].tolist(), [*TRANSFORMED], rtol=1e-5, atol=1e-5)


def test_clean_pixels_are_what_transform_input_makes_of_the_papers():
    paper, clean = (
        InceptionFeatures("random-small", mode, device="cpu").pixels(picture()) for mode in inception.INPUTS
    )
    scale, shift = (torch.tensor(values)[:, None, None] for values in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    assert paper.shape == (3, 299, 299)
    torch.testing.assert_close(clean, paper * (scale / 0.5) + (shift - 0.5) / 0.5)


def test_a_wide_picture_loses_its_sides():
    extractor = InceptionFeatures("random-small", "clean", device="cpu")
    wide = Image.new("RGB", (684, 342), (255, 0, 0))
    wide.paste((0, 255, 0), (171, 0, 513, 342))
    assert extractor.pixels(wide).amin((1, 2)).tolist() == extractor.pixels(wide).amax((1, 2)).tolist() == [-1, 1, -1]


@torch.inference_mode()
def test_dinov2_features_are_the_normed_cls_of_transformers():
    extractor = Dinov2Features("random-small", image_size=28, device="cpu")
    images = [picture(seed) for seed in range(3)]
    pixels = torch.stack([extractor.pixels(image) for image in images])
    wanted = extractor._encoder._model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor.features(images), wanted)
    assert "UNTRAINED" in extractor.label and not extractor.description["trained"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """The small CLIP as a folder of transformers."""
    folder = tmp_path_factory.mktemp("clip")
    clip.small_model(3).save_pretrained(folder)
    clip.byte_tokenizer().save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_clip_cosines_are_the_logits_of_transformers():
    extractor, model = ClipFeatures("random-small", seed=3, device="cpu"), clip.small_model(3).eval()
    images, texts = [picture(seed) for seed in range(2)], ["a red chair", "a cat", "a"]
    inputs = extractor.tokenizer(texts, padding=True, return_tensors="pt")
    out = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=torch.stack([extractor.pixels(image) for image in images]),
    )
    cosines = torch.nn.functional.cosine_similarity(
        extractor.features(images)[:, None], extractor.texts(texts)[None], dim=-1
    )
    torch.testing.assert_close(cosines, out.logits_per_image / model.logit_scale.exp(), atol=1e-5, rtol=0)
    assert "quick_gelu" in extractor.preprocessing


def test_clip_pixels_are_those_of_transformers():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = 64
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    extractor = ClipFeatures("random-small", device="cpu")
    image = picture(size=(96, 72))
    wanted = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(extractor.pixels(image), wanted, atol=1e-5, rtol=0)


def test_texts_beyond_77_tokens_are_cut_and_keep_their_end():
    extractor = ClipFeatures("random-small", device="cpu")
    long = "abcdefghij" * 20
    # 75 letters between start and end; as one word, of which the last letter has another token.
    same, other = extractor.texts([long, long[:90] + "z" * 50]), extractor.texts([long, "z" + long])
    torch.testing.assert_close(same[0], same[1])
    assert not torch.allclose(other[0], other[1])
    assert extractor.texts([]).shape == (0, extractor.width)


def test_another_tokenizer_is_another_extractor(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    words = json.loads((folder / "tokenizer.json").read_text())
    numbers = words["model"]["vocab"]
    numbers["a</w>"], numbers["b</w>"] = numbers["b</w>"], numbers["a</w>"]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    before, after = (ClipFeatures(str(place), device="cpu") for place in (clip_folder, folder))
    assert after.weights_hash == before.weights_hash
    assert not torch.equal(after.texts(["a"]), before.texts(["a"]))
    assert after.preprocessing != before.preprocessing


def test_a_folder_with_clip_is_loaded_and_stays_marked_as_untrained(clip_folder):
    ours, loaded = ClipFeatures("random-small", seed=3, device="cpu"), ClipFeatures(str(clip_folder), device="cpu")
    assert loaded.weights_hash == ours.weights_hash and not loaded.trained
    torch.testing.assert_close(loaded.texts(["a chair"]), ours.texts(["a chair"]))
    assert loaded.preprocessing == ours.preprocessing
    assert getattr(clip.small_model(3).config, UNTRAINED_MARK)


def test_the_clip_score_is_100_times_the_mean_cosine():
    views, text = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([3.0, 0])
    assert clip_score(views, text) == pytest.approx(50)
    assert clip_score(views, views * 7) == pytest.approx(100)
    for bad in (torch.empty(0, 2), torch.full((1, 2), torch.nan)):
        with pytest.raises(ValueError, match=r"no score|not finite"):
            clip_score(bad, text)


@pytest.mark.parametrize("make", [InceptionFeatures, Dinov2Features, ClipFeatures])
def test_features_do_not_depend_on_how_many_travel_together_and_alpha_goes_on_black(make):
    extractor = (
        make("random-small", device="cpu") if make is not Dinov2Features else make("random-small", image_size=28)
    )
    images = [picture(seed) for seed in range(3)]
    together = extractor.features(images)
    torch.testing.assert_close(together[1:2], extractor.features(images[1:2]), atol=1e-4, rtol=1e-4)
    assert together.shape == (3, extractor.width) and together.dtype == torch.float32
    assert extractor.features([]).shape == (0, extractor.width)
    assert not torch.allclose(together[0], together[1], rtol=1e-3)
    clear = picture(4, mode="RGBA")
    clear.putalpha(0)
    torch.testing.assert_close(extractor.features([clear]), extractor.features([Image.new("RGB", clear.size)]))


@pytest.mark.parametrize("make", [InceptionFeatures, Dinov2Features, ClipFeatures, PointFeatures])
def test_random_weights_follow_the_seed_alone(make):
    size = {"image_size": 28} if make is Dinov2Features else {}
    hashes = []
    for drawn, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(drawn)
        hashes.append(make("random-small", seed=seed, device="cpu", **size).weights_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_without_weights_a_sentence_says_which_file_goes_where(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    nowhere = {"url": "http://127.0.0.1:9/inception_v3_google-0cc3c7bd.pth"}
    monkeypatch.setattr(inception, "PUBLISHED", type(inception.PUBLISHED)(**{**vars(inception.PUBLISHED), **nowhere}))
    kept = tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    with pytest.raises(SystemicFault, match=rf"put it at {kept}, or name the file .*--evaluation\.inception FILE"):
        InceptionFeatures()
    with pytest.raises(SystemicFault, match=r"evaluation\.inception"):
        InceptionFeatures("somebody/inception")
    with pytest.raises(SystemicFault, match=r"--evaluation\.dinov2 DIR"):
        Dinov2Features("somebody/dinov2")
    with pytest.raises(SystemicFault, match=r"vocab\.json.*--evaluation\.clip DIR"):
        ClipFeatures("somebody/clip")
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(InceptionV3(slim=8).state_dict(), kept)
    with pytest.raises(SystemicFault, match="another network"):
        InceptionFeatures()


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"weight": Image.new("RGB", (1, 1))}, path)
    with pytest.raises(SystemicFault, match=r"Inception-v3 .* could run code"):
        InceptionFeatures(str(path))


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_no_extractor_enlarges_a_strip_beyond_the_limit_of_pixels(size):
    with pytest.raises(Failure, match="beyond") as caught:
        InceptionFeatures("random-small").pixels(Image.new("RGB", size))
    assert caught.value.status is Status.TOO_LARGE


@pytest.mark.parametrize("name", ["clip", "clip_large"])
def test_the_clip_whose_weights_are_missing_is_named_by_its_own_setting(tmp_path, name):
    with pytest.raises(SystemicFault, match=rf"in evaluation\.{name} \(--evaluation\.{name} DIR\)"):
        load_pictures(
            name, EvaluationSettings(**{"clip": "random-small", "clip_large": "random-small", name: str(tmp_path)})
        )
