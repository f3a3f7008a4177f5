"""The bundled objects: two dozen models made by this package's own code, written at run time."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gap3d.samples import buildings, furniture, kitchen, nature, toys, vehicles
from gap3d.samples.model import Model
from gap3d.samples.writers import Files, write

CAPTIONS_FILE = "captions.csv"


@dataclass(frozen=True)
class Sample:
    """One object; `facing` is the yaw its front points to, `hidden_at_yaw_0` that yaw 0 shows little of it."""

    name: str
    path: str
    build: Callable[[], Model]
    facing: float
    captions: tuple[str, ...]
    hidden_at_yaw_0: bool = False

    def files(self) -> Files:
        """The bytes of its files, by name, the main file first."""
        target = Path(self.path)
        return write(target.stem, target.suffix[1:], self.build().surfaces(self.facing))


SAMPLES: tuple[Sample, ...] = (
    Sample(
        "teapot",
        "kitchen/teapot.glb",
        kitchen.teapot,
        15,
        (
            "A round red teapot with white polka dots, a curved spout, a looped handle and a lid with a golden knob.",
            "A red teapot with a curved spout.",
        ),
    ),
    Sample(
        "ice cream",
        "kitchen/ice_cream.gltf",
        kitchen.ice_cream,
        0,
        (
            "Two scoops of ice cream, strawberry and pistachio, in a waffle cone with chocolate sauce and a cherry.",
            "An ice cream cone with two scoops and a cherry.",
            "An ice cream cone.",
        ),
    ),
    Sample(
        "hamburger",
        "kitchen/hamburger.glb",
        kitchen.hamburger,
        0,
        (
            "A hamburger with lettuce, tomato, melted cheese and a beef patty in a bun sprinkled with sesame seeds.",
            "A cheeseburger in a sesame bun.",
        ),
    ),
    Sample(
        "doughnut",
        "kitchen/donut.usda",
        kitchen.donut,
        0,
        (
            "A ring doughnut covered with shiny pink icing and sprinkles of many colours.",
            "A pink frosted donut with sprinkles.",
            "A donut.",
        ),
    ),
    Sample(
        "snowman",
        "nature/snowman.glb",
        nature.snowman,
        -5,
        (
            "A snowman made of three balls of snow with a carrot nose, a blue top hat, a red scarf and stick arms.",
            "A snowman with a top hat and a red scarf.",
            "A snowman.",
        ),
    ),
    Sample(
        "cactus",
        "nature/cactus.usda",
        nature.cactus,
        15,
        (
            "A green ribbed cactus with two arms and a pink flower on top, growing in a clay pot.",
            "A flowering cactus in a terracotta pot.",
        ),
    ),
    Sample(
        "mushroom",
        "nature/mushroom.obj",
        nature.mushroom,
        200,
        (
            "A large and a small toadstool with red caps and white spots, standing in green grass.",
            "Two red mushrooms with white dots.",
            "Red toadstools.",
        ),
    ),
    Sample(
        "palm",
        "nature/palm.glb",
        nature.palm,
        10,
        (
            "A coconut palm with a bent trunk on a tiny island of sand surrounded by blue water.",
            "A palm tree on a desert island.",
        ),
    ),
    Sample(
        "sailboat",
        "vehicles/sailboat.usda",
        vehicles.sailboat,
        155,
        (
            "A sailing boat with a red and white hull, a cream mainsail, a blue jib and a pennant at the masthead.",
            "A small red sailboat with two sails.",
            "A sailboat.",
        ),
    ),
    Sample(
        "rocket",
        "vehicles/rocket.glb",
        vehicles.rocket,
        -20,
        (
            "A cartoon rocket with a white body, a red nose cone, red fins, round blue windows and a flame below.",
            "A white space rocket with red fins.",
        ),
    ),
    Sample(
        "locomotive",
        "vehicles/locomotive.glb",
        vehicles.locomotive,
        -150,
        (
            "A green steam locomotive with red spoked wheels, brass bands, a tall funnel and white puffs of smoke.",
            "A toy steam engine with red wheels.",
            "A steam train.",
        ),
    ),
    Sample(
        "balloon",
        "vehicles/balloon.gltf",
        vehicles.balloon,
        0,
        (
            "A hot-air balloon with rainbow stripes, a white zigzag band and a wicker basket hanging on ropes.",
            "A colourful hot air balloon.",
        ),
    ),
    Sample(
        "airplane",
        "vehicles/airplane.stl",
        vehicles.airplane,
        -62,
        (
            "A plain white passenger jet with swept wings, two engines under the wings and a tall tail fin.",
            "A white airliner with two engines.",
            "An airplane.",
        ),
    ),
    Sample(
        "lighthouse",
        "buildings/lighthouse.obj",
        buildings.lighthouse,
        -70,
        (
            "A lighthouse with red and white stripes on a rocky islet, with a small white cottage beside it.",
            "A red and white striped lighthouse.",
        ),
    ),
    Sample(
        "windmill",
        "buildings/windmill.glb",
        buildings.windmill,
        -20,
        (
            "A Dutch windmill with four lattice sails, a wooden gallery and beds of tulips along the path.",
            "An old windmill with four sails and a garden of tulips.",
            "A windmill.",
        ),
    ),
    Sample(
        "bookcase",
        "furniture/bookcase.obj",
        furniture.bookcase,
        200,
        (
            "A tall wooden bookcase with four shelves full of colourful books and a small potted plant.",
            "A bookshelf filled with books.",
        ),
        True,
    ),
    Sample(
        "armchair",
        "furniture/armchair.ply",
        furniture.armchair,
        105,
        (
            "A stuffed armchair with rolled arms, a high buttoned back, short round legs and a loose cushion.",
            "An armchair with a cushion.",
            "An armchair.",
        ),
        True,
    ),
    Sample(
        "piano",
        "furniture/piano.obj",
        furniture.piano,
        290,
        (
            "A brown upright piano with black and white keys, sheet music on the stand, two candles and a red stool.",
            "An upright piano with a stool.",
        ),
        True,
    ),
    Sample(
        "fireplace",
        "furniture/fireplace.glb",
        furniture.fireplace,
        195,
        (
            "A red brick fireplace with burning logs, a wooden mantelpiece, a clock and two blue vases.",
            "A brick fireplace with a fire in it.",
            "A fireplace.",
        ),
        True,
    ),
    Sample(
        "duck",
        "toys/duck.glb",
        toys.duck,
        -42,
        ("A yellow rubber duck with an orange bill and an upturned tail, swimming in blue water.", "A rubber duck."),
    ),
    Sample(
        "robot",
        "toys/robot.glb",
        toys.robot,
        -20,
        (
            "A blue tin toy robot with glowing yellow eyes, an antenna, a dial on its chest, claws and red feet.",
            "A retro toy robot with claws.",
            "A toy robot.",
        ),
    ),
    Sample(
        "dice",
        "toys/dice.gltf",
        toys.dice,
        0,
        (
            "Two six-sided dice with rounded corners, one white with black pips and one red with white pips.",
            "A white die and a red die.",
            "A pair of dice.",
        ),
    ),
    Sample(
        "rook",
        "toys/rook.stl",
        toys.rook,
        0,
        (
            "A white chess rook shaped like a small round tower with battlements on a wide base.",
            "A chess piece, the rook.",
        ),
    ),
    Sample(
        "guitar",
        "toys/guitar.usda",
        toys.guitar,
        -8,
        (
            "An acoustic guitar with a light wooden top and a round sound hole, standing on a small red rug.",
            "A wooden acoustic guitar.",
            "A guitar.",
        ),
    ),
)


def _put(target: Path, data: bytes) -> None:
    """Write a file at once, or leave it alone if it already holds these bytes."""
    if target.is_file() and target.stat().st_size == len(data) and target.read_bytes() == data:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_samples(folder: Path) -> None:
    """Write the objects into sub-folders, and `captions.csv` (columns path, captions as a JSON list) beside them."""
    folder = Path(folder)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["path", "captions"])
    for sample in SAMPLES:
        for name, data in reversed(sample.files().items()):
            _put(folder / Path(sample.path).parent / name, data)
        rows.writerow([sample.path, json.dumps(list(sample.captions))])
    _put(folder / CAPTIONS_FILE, table.getvalue().encode())
