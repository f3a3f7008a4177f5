"""A snowman, a cactus, toadstools and a palm island."""

from __future__ import annotations

import numpy as np

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import Shape, ball, beam, cylinder, join, lathe, pebble, sheet, spline, torus, tube


def snowman() -> Model:
    """Three balls of snow with a hat, a carrot, a scarf and stick arms."""
    snow, coal, carrot = Material("snow", "e9f1fa", 0.8), Material("coal", "22222a", 0.5), Material("carrot", "ff7a0a")
    scarf, hat, band = Material("scarf", "d01828", 0.8), Material("hat", "3a4470", 0.5), Material("band", "e8b820")
    wood = Material("wood", "8a552a", 0.8)
    m = Model()
    m.add(snow, ball(1.0, 40).scale(1, 1, 0.92).move(z=0.85), ball(0.74, 40).move(z=2.1), ball(0.54, 40).move(z=3.1))
    for x in (-0.2, 0.2):
        m.add(coal, ball(0.075, 16).move(x, -0.49, 3.22))
    for i in range(5):
        a = np.radians(-46 + 23 * i)
        m.add(coal, ball(0.045, 12).move(0.36 * np.sin(a), -0.5 + 0.1 * np.sin(a) ** 2, 3.2 - 0.36 * np.cos(a)))
    m.add(carrot, tube([(0, -0.45, 3.08), (0, -0.7, 3.08), (0, -1.15, 3.02)], [0.12, 0.09, 0.005], 16))
    for z, y in ((2.42, -0.68), (2.12, -0.75), (1.82, -0.7), (1.2, -0.95)):
        m.add(coal, ball(0.085, 16).move(0, y, z))
    m.add(scarf, torus(0.46, 0.17, 48, 16).scale(1, 1, 0.8).move(z=2.68))
    tail = spline([(0.3, -0.42, 2.66), (0.4, -0.68, 2.5), (0.42, -0.82, 2.15), (0.44, -0.82, 1.75)], 20)
    m.add(scarf, tube(tail, 0.15, 14, flat=0.4, up=(0, 1, 0)))
    m.add(hat, cylinder(0.72, 0.08, 0.03, 48).move(z=3.5), cylinder(0.42, 0.72, 0.04, 48, top=0.47).move(z=3.54))
    m.add(band, cylinder(0.445, 0.15, 0.0, 48, top=0.455).move(z=3.58))
    arm = spline([(0.62, 0, 2.2), (1.1, -0.05, 2.5), (1.65, -0.1, 2.75)], 12)
    twigs = [tube(arm, np.linspace(0.065, 0.04, 12), 10), beam((1.42, -0.08, 2.66), (1.55, -0.1, 3.0), 0.03)]
    twigs += [beam((1.6, -0.1, 2.73), (1.9, -0.15, 3.02), 0.03), beam((1.6, -0.1, 2.73), (1.98, -0.1, 2.7), 0.03)]
    m.add(wood, join(twigs).mirror())
    ground = lathe(
        [(0, -0.14), (1.35, -0.14), (1.45, -0.06), (1.3, 0.03), (0, 0.1)], 48, lambda a: 1 + 0.04 * np.sin(4 * a + 1)
    )
    m.add(snow, ground.scale(1, 1.05, 1).move(0, -0.65))
    for x, y, r in ((0.95, -1.3, 0.2), (0.72, -1.6, 0.15), (-0.9, -1.45, 0.17)):
        m.add(snow, ball(r, 20).move(x, y, 0.15))
    return m


def _ribbed(points: list[tuple[float, float, float]], radius: float, count: int) -> Shape:
    """A ribbed, round-ended stalk along a curve."""
    path = spline(points, count)
    tip = np.linspace(1, 0, 9)[1:]
    last, ahead = path[-1], path[-1] - path[-2]
    ahead /= np.linalg.norm(ahead)
    dome = [last + ahead * radius * float(np.sqrt(1 - t * t)) for t in tip]
    radii = np.concatenate([np.full(count, radius), radius * np.maximum(tip, 0.02)])
    return tube(np.array([*path, *dome]), radii, 80, up=(0, 1, 0), ribs=lambda a: 1 + 0.13 * np.cos(10 * a))


def cactus() -> Model:
    """A saguaro with two arms and a flower, in a clay pot."""
    green, clay, soil = (
        Material("green", "2f9a3c", 0.6),
        Material("clay", "c8602c", 0.7),
        Material("soil", "6b4526", 0.9),
    )
    flower, heart, spine = Material("flower", "ff3f92"), Material("heart", "ffd428"), Material("spine", "fff2c0")
    m = Model()
    m.add(
        clay,
        lathe(
            [
                (0, 0),
                (0.62, 0),
                (0.66, 0.04),
                (0.86, 0.95),
                (0.98, 0.95),
                (1.0, 1.0),
                (1.04, 1.25),
                (1.0, 1.3),
                (0.9, 1.3),
                (0.86, 1.15),
            ],
            56,
        ),
    )
    m.add(soil, lathe([(0.88, 1.12), (0.5, 1.2), (0, 1.22)], 40))
    m.add(green, _ribbed([(0, 0, 1.1), (0, 0, 2.0), (0, 0, 3.6)], 0.46, 14))
    m.add(green, _ribbed([(0.3, 0, 2.1), (0.85, 0, 2.15), (1.1, 0, 2.5), (1.12, 0, 3.15)], 0.26, 26))
    m.add(green, _ribbed([(-0.3, 0, 2.5), (-0.78, 0, 2.55), (-1.0, 0, 2.85), (-1.02, 0, 3.6)], 0.24, 26))
    prick = join(tube([(0.44, 0, 0), (0.62, s * 0.06, 0.05 * s)], [0.02, 0.003], 5) for s in (-1, 1))
    m.add(spine, join(prick.around(10, 0).move(z=1.5 + 0.3 * i) for i in range(8)))
    petal = ball(0.2, 16).scale(1.1, 0.6, 0.22).turn("y", -32).move(0.22, 0, 0.04)
    m.add(flower, petal.around(8).move(z=4.1), petal.scale(0.6).around(7).move(1.12, 0, 3.45))
    m.add(heart, ball(0.12, 16).move(z=4.14), ball(0.08, 12).move(1.12, 0, 3.46))
    return m


def _toadstool(m: Model, size: float, x: float, y: float, lean: float, seed: int) -> None:
    """Add one toadstool to a model."""
    red, white = Material("red", "d4101c", 0.35), Material("white", "fff6e6", 0.6)
    stalk, gill = Material("stalk", "f0e2c4", 0.7), Material("gill", "e6cf9e", 0.8)

    def put(shape: Shape) -> Shape:
        return shape.scale(size).turn("y", lean).move(x, y)

    m.add(stalk, put(lathe(spline([(0.44, 0), (0.46, 0.2), (0.3, 0.6), (0.25, 1.2), (0.28, 1.7)], 20), 40)))
    m.add(
        stalk,
        put(lathe(spline([(0.26, 1.3), (0.4, 1.2), (0.56, 1.02)], 8), 48, ribs=lambda a: 1 + 0.05 * np.cos(12 * a))),
    )
    m.add(gill, put(lathe([(0.2, 1.62), (1.12, 1.5)], 96, ribs=lambda a: 1 + 0.012 * np.cos(32 * a))))
    angle = np.linspace(0, np.pi / 2, 20)
    cap = np.stack([1.2 * np.cos(angle), 1.52 + 0.92 * np.sin(angle)], 1)
    cap[-1, 0] = 0.0
    m.add(red, put(lathe([(1.1, 1.49), (1.17, 1.48), *cap], 64)))
    rng = np.random.default_rng(seed)
    for tilt, count in ((0, 1), (33, 5), (58, 9), (78, 11)):
        for i in range(count):
            r = float(rng.uniform(0.1, 0.17)) * (1.25 if tilt < 40 else 1.0)
            a = np.radians(90 - tilt + float(rng.uniform(-4, 4)))
            slope = np.degrees(np.arctan2(1.2 * np.sin(a) / 0.92, np.cos(a) / 1.2 * 1.2 * 1.2 / 1.2))
            spot = ball(r, 14).scale(1, 1, 0.32).turn("y", 90 - slope).move(1.2 * np.cos(a), 0, 1.52 + 0.92 * np.sin(a))
            m.add(white, put(spot.turn("z", 360.0 * i / count + 41 * tilt)))


def mushroom() -> Model:
    """A big and a small red toadstool with white spots, on grass."""
    grass, blade = Material("grass", "4f9a2e", 0.9), Material("blade", "7ccc3a", 0.7)
    m = Model()
    _toadstool(m, 1.0, -0.25, 0.15, -4, 1)
    _toadstool(m, 0.52, 0.95, -0.55, 9, 2)
    m.add(
        grass,
        lathe(
            [(0, -0.12), (1.4, -0.12), (1.45, -0.06), (1.1, 0.04), (0, 0.12)], 48, lambda a: 1 + 0.04 * np.sin(5 * a)
        ),
    )
    rng = np.random.default_rng(7)
    for _ in range(46):
        a, r, h = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3), rng.uniform(0.25, 0.55)
        lean = rng.normal(0, 0.12, 2)
        path = spline([(0, 0, 0), (lean[0] * 0.4, lean[1] * 0.4, h * 0.6), (lean[0], lean[1], h)], 6)
        m.add(blade, tube(path, np.linspace(0.045, 0.006, 6), 6).move(r * np.cos(a), r * np.sin(a), 0))
    return m


def _frond(length: float, droop: float) -> Shape:
    """One palm leaf along x: an arched rib with leaflets on both sides."""
    t = np.linspace(0, 1, 24)
    rib = np.stack([length * (t - 0.12 * t**3), 0 * t, length * (0.42 * t - droop * t**2)], 1)
    blades = [tube(rib, np.linspace(0.05, 0.012, 24), 6)]
    for i in range(2, 24):
        span = length * 0.34 * np.sin(np.pi * min(0.16 + 0.84 * t[i], 0.97)) ** 0.6
        for side in (-1, 1):
            root, ahead = rib[i], np.array([0.42 * span, side * span, -0.38 * span])
            wide = np.array([length * 0.03, 0, 0])
            rows = [root - wide, root + wide], [root + ahead * 0.5 - wide, root + ahead * 0.5 + wide + [0, 0, 0.03]]
            tip = root + ahead + [0, 0, -0.12 * span]
            blades.append(sheet(np.array([*rows, [tip, tip + 0.01]])))
    return join(blades)


def palm() -> Model:
    """A coconut palm on a small sand island."""
    bark, leaf, sand = (
        Material("bark", "a9743c", 0.85),
        Material("leaf", "35a833", 0.5),
        Material("sand", "f2d388", 0.95),
    )
    sea, nut, stone = (
        Material("sea", "2fb4e0", 0.2),
        Material("coconut", "7a4a22", 0.7),
        Material("stone", "9c9a94", 0.9),
    )
    m = Model()
    m.add(sea, cylinder(1.75, 0.16, 0.06, 64))
    m.add(
        sand,
        lathe(spline([(1.35, 0.14), (1.1, 0.28), (0.6, 0.44), (0.0, 0.5)], 14), 56, lambda a: 1 + 0.05 * np.sin(3 * a)),
    )
    path = spline([(-0.35, 0, 0.3), (-0.2, 0, 1.2), (0.12, 0, 2.2), (0.55, 0, 3.15)], 60)
    ringed = np.linspace(0.24, 0.13, 60) * (1 + 0.13 * (np.arange(60) % 4 == 0))
    m.add(bark, tube(path, ringed, 20, up=(0, 1, 0)))
    crown = path[-1]
    for i in range(9):
        leafy = _frond(1.75 if i % 2 else 1.95, 0.78 + 0.13 * (i % 3)).turn("z", 40.0 * i + 13)
        m.add(leaf, leafy.move(*crown))
    m.add(leaf, _frond(1.1, 0.15).turn("y", -35).turn("z", 70).move(*crown))
    for a in (200, 260, 320, 80):
        m.add(nut, ball(0.15, 20).move(0.2, 0, -0.12).turn("z", a).move(*crown))
    m.add(stone, pebble(0.2, 3).move(0.75, -0.55, 0.3), pebble(0.14, 4).move(0.95, -0.35, 0.26))
    m.add(nut, ball(0.13, 20).move(-0.75, -0.5, 0.4))
    return m
