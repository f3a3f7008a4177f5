"""The worker that has TRELLIS make objects: one child with one pipeline, kept from object to object."""

import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gap3d.blobs import sha256_of
from gap3d.depth import depth_range, encode_depth
from gap3d.features.decoding import decode_image
from gap3d.features.images import without_alpha
from gap3d.parts import fsync_path, read_rows
from gap3d.records import Failure, Outcome, Status, SystemicFault
from gap3d.settings import Limits
from gap3d.target_parts import TargetPart
from gap3d.temporary import TemporaryFolder
from gap3d.transforms import transforms
from gap3d.trellis.process import Died, Installation, Late, TrellisProcess
from gap3d.trellis.turntable import RADIUS, Turntable

FOLDER = "objects"  # of the collection: what is made, by method
MAKING = ".making"  # no name of an object begins so
TIMES = 4  # of an object's time limit: sampling, decoding, baking a texture and rendering


@dataclass(frozen=True)
class Wanted:
    """What is made of every object, beside its Gaussians.

    Attributes:
        turntables: its frames.
        resolution: pixels of a frame's side.
        glb: whether a textured mesh is made.
        black: whether pictures are composited on black first: TRELLIS then cuts the object out itself.
    """

    turntables: tuple[Turntable, ...]
    resolution: int = 512
    glb: bool = True
    black: bool = False

    @property
    def formats(self) -> list[str]:
        """What TRELLIS decodes."""
        return ["gaussian", "mesh"] if self.glb or any(each.depth for each in self.turntables) else ["gaussian"]


@dataclass(frozen=True)
class Source:
    """What one object is made from.

    Attributes:
        key: of its row.
        prompt: its text.
        name: of its folder.
        seed: that TRELLIS gets.
        part: where its tokens, or its picture, are stored; None where the text is all.
        row: position in the part.
        column: of the picture; empty for tokens.
        about: what its ``object.json`` says beside that.
    """

    key: str
    prompt: str
    name: str
    seed: int
    part: str | None = None
    row: int = 0
    column: str = ""
    about: Mapping[str, Any] | None = None


class Shaper:
    """One TRELLIS.

    Args:
        stage: of the rows.
        installation: where TRELLIS is.
        wanted: what is made.
        root: the collection's folder.
        limits: of time and pixels.
    """

    def __init__(self, stage: str, installation: Installation, wanted: Wanted, root: Path, limits: Limits) -> None:
        self.stage = stage
        self.installation = installation
        self.wanted = wanted
        self.root = root
        self.limits = limits
        self.trellis: TrellisProcess | None = None  # begun with the first object

    def process(self, payload: Source) -> list[Outcome]:
        """One object."""
        begun = time.perf_counter()
        folder = self.root / FOLDER / self.installation.method
        folder.mkdir(parents=True, exist_ok=True)
        making = TemporaryFolder(folder, MAKING)
        try:
            made = self.made(payload, making.path, folder)
        except Failure as known:
            made = Outcome(stage=self.stage, key=payload.key, status=known.status, reason=known.reason)
        finally:
            making.remove()
        return [replace(made, seconds=time.perf_counter() - begun)]

    def made(self, source: Source, making: Path, folder: Path) -> Outcome:
        """The row of one object, whose files are in their place.

        Raises:
            Failure: it can't be made.
        """
        out = making / "out"
        out.mkdir()
        trellis = self.trellis = self.trellis or TrellisProcess(self.installation)
        request = {
            **self.given(source, making),
            "seed": source.seed,
            "folder": str(out),
            "formats": self.wanted.formats,
            "turntables": [each.request() for each in self.wanted.turntables],
            "resolution": self.wanted.resolution,
            "glb": self.wanted.glb,
        }
        try:
            said = trellis.ask(request, TIMES * self.limits.timeout_s)
        except (Died, Late) as error:
            self.close()  # the next object gets another
            status = Status.CRASHED if isinstance(error, Died) else Status.TIMEOUT
            raise Failure(status, f"TRELLIS's process: {error}"[:500]) from error
        if said["status"] != "ok":
            return Outcome(
                stage=self.stage,
                key=source.key,
                status=Status(said["status"]),
                reason=said["reason"],
                device=trellis.device,
                log_tail=said.get("log", ""),
            )
        finish(out, source, self.wanted, said)
        place = folder / source.name
        if place.exists():
            place.rename(making / "old")
        out.rename(place)
        fsync_path(folder)
        data = {
            "prompt": source.prompt,
            "method": self.installation.method,
            "model": self.installation.model,
            "seed": source.seed,
            "folder": str(place.relative_to(self.root)),
            "files": listed(place),
            "gaussians": said["gaussians"],
            "lacking": said["lacking"],
        }
        return Outcome(stage=self.stage, key=source.key, data=data, device=trellis.device)

    def given(self, source: Source, making: Path) -> dict[str, str]:
        """What the child is given of one object: a text, or the path of a picture or of tokens."""
        if source.part is None:
            return {"text": source.prompt}
        if not source.column:
            np.save(making / "tokens.npy", tokens_at(source.part, source.row, source.key))
            return {"tokens": str(making / "tokens.npy")}
        table = read_rows(Path(source.part), [source.row], ["key", source.column])
        image = decode_image(table.column(source.column)[0].as_py(), self.limits.pixels)
        (without_alpha(image, "black") if self.wanted.black else image).save(making / "image.png")
        return {"image": str(making / "image.png")}

    def probe(self) -> None:
        """The child answers, or a new one starts."""
        self.close()
        self.trellis = TrellisProcess(self.installation)

    def close(self) -> None:
        """End the child."""
        if self.trellis is not None:
            self.trellis.close()
            self.trellis = None


def tokens_at(part: str, row: int, key: str) -> np.ndarray:
    """Stored tokens of one row: CLS, registers, patches, float32 [T, C].

    Raises:
        SystemicFault: another row is there.
    """
    with TargetPart(part) as opened:
        group, place = opened.find(row)
        batch = opened.read(group)
        if batch.keys[place] != key:
            raise SystemicFault(f"{part} row {row} is {batch.keys[place]}, not {key}: run `python -m pipelines.verify`")
        pieces = (batch.cls[place][None], batch.registers[place], batch.patches[place])
        return np.concatenate([piece.float().numpy() for piece in pieces])


def finish(out: Path, source: Source, wanted: Wanted, said: Mapping[str, Any]) -> None:
    """Prove that all files are there, and add what TRELLIS does not write: depth pictures, cameras, where from.

    Raises:
        Failure: ``internal_error``: a file is missing, or is none of its kind.
    """
    require(out / "model.ply", b"ply")
    if wanted.glb and not any(lack.startswith("glb") for lack in said["lacking"]):
        require(out / "model.glb", b"glTF")
    low, high = depth_range(RADIUS)
    for table in wanted.turntables:
        rows = table.rows()
        for row in rows:
            require(frame := out / table.name / f"{row['view']:03d}.png", b"\x89PNG")
            with Image.open(frame) as image:
                if image.size != (wanted.resolution, wanted.resolution):
                    raise Failure(Status.INTERNAL_ERROR, f"{frame.name} has {image.size} pixels")
            if table.depth:
                depth = frame.with_name(f"{frame.stem}_depth.npy")
                frame.with_name(f"{frame.stem}_depth.png").write_bytes(encode_depth(loaded(depth), low, high))
                depth.unlink()
                row |= {"depth": True, "depth_min": low, "depth_max": high}
        content = {"object_id": source.key, "ssaa": table.ssaa, **transforms(rows)}
        (out / table.name / "transforms.json").write_text(json.dumps(content, indent=1))
    about = {"key": source.key, "prompt": source.prompt, "seed": source.seed, **(source.about or {})}
    (out / "object.json").write_text(json.dumps({**about, "lacking": said["lacking"]}, indent=1))
    for path in sorted(out.rglob("*")):
        fsync_path(path)


def require(path: Path, start: bytes) -> None:
    """Raises Failure unless a file is there and begins so."""
    try:
        with path.open("rb") as file:
            found = file.read(len(start))
    except FileNotFoundError:
        raise Failure(Status.INTERNAL_ERROR, f"TRELLIS wrote no {path.name}") from None
    if found != start:
        raise Failure(Status.INTERNAL_ERROR, f"TRELLIS's {path.name} begins with {found!r}")


def loaded(path: Path) -> np.ndarray:
    """A depth picture of the child's, float32 [H, W]."""
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (FileNotFoundError, ValueError) as error:
        raise Failure(Status.INTERNAL_ERROR, f"TRELLIS's {path.name} can't be read: {error}") from error


def listed(folder: Path) -> list[dict[str, Any]]:
    """The files of an object."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": path.relative_to(folder).as_posix(), "sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in paths
    ]


def stand(root: Path, folder: str, files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an object's files are where its row says, in their sizes."""
    for file in files:
        try:
            if (root / folder / file["path"]).stat().st_size != file["bytes"]:
                return False
        except OSError:
            return False
    return True


def discard(root: Path, method: str, names: set[str]) -> list[str]:
    """Remove the folders of objects that have no row any more; their names."""
    folder = root / FOLDER / method
    gone = [path for path in sorted(folder.glob("*")) if path.name not in names and not path.name.startswith(MAKING)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in gone]
