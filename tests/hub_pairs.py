"""Image-text tars that lie at a hub, and what of them lies here."""

import io
import tarfile

from PIL import Image

from gap3d.store import ALL
from pipelines import image_text
from pipelines.command import load_settings, open_store

LONG, SHORT = "lab/Long", "lab/Short"
TOKEN = "hf_" + "secretsecretsecret"
FAST = {"retries": 1, "pause_s": 1.5, "stall_s": 1.0, "object_s": 10.0, "repository_s": 20.0, "requests_per_s": 1000.0}


def jpeg(number):
    file = io.BytesIO()
    Image.effect_noise((24, 24), number + 1).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def samples(seed, count=3):
    return {f"{seed}{n:04d}": (jpeg(seed * 100 + n), f"caption {seed} {n}") for n in range(count)}


def tar_of(content, extra=()):
    """A tar as the data set has them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, (image, text) in content.items():
            for name, data in ((f"{key}.jpg", image), (f"{key}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for name in extra:
            tar.addfile(tarfile.TarInfo(name))
    return file.getvalue()


SAMPLES = {f"data/{number:05d}.tar": samples(number) for number in range(5)}
TARS = {path: tar_of(content) for path, content in SAMPLES.items()}
OTHER = {"00000.tar": tar_of(samples(7, 2), ["lonely.jpg", "README"])}


def settings_of(root, network=None, image_text=None, **values):
    base = {
        "store": root / "store",
        "collection": "pairs",
        "image_text": {"repositories": {LONG: "main"}, **(image_text or {})},
        "network": {**FAST, **(network or {})},
        "compute": {"workers": 0},
    }
    return load_settings("demo", **{**base, **values})


def rows_of(settings):
    store = open_store(settings)
    held = store.manifest(image_text.STAGE, ALL)
    assert held.complete and store.verify(held) == []
    data = store.read(held)
    return {key: (row.status.value, row.reason, data.get(key)) for key, row in held.rows.items()}


def statuses(settings):
    return {key.partition("/")[2].partition("/")[2]: row[0] for key, row in rows_of(settings).items()}


def lying(settings):
    """Bytes of what lies in the folder, locks and all."""
    return {path.name: path.read_bytes() for path in image_text.folder_of(settings).iterdir()}


def flat(repository, files):
    return {f"{repository}/{path}".replace("/", "--"): data for path, data in files.items()}


def forget(hub):
    hub.log.clear()
