"""A lighthouse and a windmill."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import Shape, ball, beam, box, cylinder, extrude, join, lathe, pebble, sheet, torus, upright


def _bands() -> Image.Image:
    """Red and white bands."""
    image = Image.new("RGB", (16, 350), (246, 242, 234))
    draw = ImageDraw.Draw(image)
    for i in range(0, 7, 2):
        draw.rectangle([0, i * 50, 15, i * 50 + 49], fill=(206, 22, 30))
    return image


def lighthouse() -> Model:
    """A striped tower with a gallery and a lamp, on rocks, with a keeper's cottage."""
    bands, white = Material("bands", "ffffff", 0.5, texture=_bands), Material("white", "f4f0e6", 0.6)
    red, rock, glass = (
        Material("red", "c8161e", 0.4),
        Material("rock", "8d8378", 0.9),
        Material("lamp", "ffe060", 0.2, glow=1.0),
    )
    iron, door, pane = Material("iron", "4a5468", 0.5), Material("door", "8a4a20", 0.7), Material("pane", "58b4e8", 0.2)
    grass = Material("grass", "5fa83a", 0.9)
    m = Model()
    m.add(bands, lathe([(0.8 - 0.3 * t, 3.9 * t) for t in np.linspace(0, 1, 15)], 56))
    m.add(iron, cylinder(0.78, 0.12, 0.03, 48).move(z=3.86), lathe([(0.5, 3.6), (0.72, 3.88)], 48))
    m.add(
        iron,
        torus(0.73, 0.025, 48, 8).move(z=4.28),
        torus(0.73, 0.02, 48, 8).move(z=4.13),
        beam((0.73, 0, 3.95), (0.73, 0, 4.28), 0.022, 6).around(16),
    )
    m.add(glass, cylinder(0.36, 0.7, 0.0, 32).move(z=3.97))
    m.add(iron, beam((0.38, 0, 3.97), (0.38, 0, 4.68), 0.03, 8).around(8), torus(0.38, 0.035, 40, 8).move(z=4.33))
    m.add(red, lathe([(0, 4.66), (0.54, 4.66), (0.54, 4.72), (0.4, 4.95), (0.2, 5.1), (0, 5.16)], 40))
    m.add(iron, ball(0.09, 16).move(z=5.2), beam((0, 0, 5.2), (0, 0, 5.5), 0.022))
    for z, y in ((1.55, -0.69), (2.65, -0.61)):
        m.add(white, box(0.3, 0.1, 0.42, 0.03).move(0, y, z))
        m.add(pane, box(0.2, 0.12, 0.32).move(0, y, z))
    arch = [(-0.2, 0), (0.2, 0), *[(0.2 * np.cos(a), 0.5 + 0.2 * np.sin(a)) for a in np.linspace(0, np.pi, 12)]]
    m.add(white, upright([(x * 1.35, z * 1.12) for x, z in arch], 0.12, 0.02).move(0, -0.8, 0))
    m.add(door, upright(arch, 0.18, 0.02).move(0, -0.8, 0))
    m.add(white, box(1.15, 0.95, 0.72).move(1.2, 0.1, 0.36))
    m.add(white, upright([(-0.475, 0.7), (0.475, 0.7), (0, 1.16)], 1.15).turn("z", 90).move(1.2, 0.1))
    for side in (-1, 1):
        m.add(
            red,
            box(1.3, 0.78, 0.07, 0.02).turn("x", side * 44.5).move(1.2, 0.1 - side * 0.285, 0.96)
            if side < 0
            else box(1.3, 0.78, 0.07, 0.02).turn("x", 44.5).move(1.2, -0.185, 0.96),
        )
    m.add(white, box(0.2, 0.2, 0.5).move(1.5, 0.3, 1.15))
    for x in (1.0, 1.45):
        m.add(pane, box(0.24, 0.06, 0.28, 0.01).move(x, -0.38, 0.42))
    m.add(
        grass,
        lathe(
            [(0, -0.2), (1.8, -0.2), (1.75, -0.04), (1.5, 0.03), (0, 0.03)], 40, lambda a: 1 + 0.05 * np.sin(4 * a)
        ).move(0.45),
    )
    for i in range(16):
        a = 2 * np.pi * i / 16
        lump = pebble(0.4 + 0.12 * np.sin(i * 2.4), i, 0.25).scale(1, 1, 0.85)
        m.add(rock, lump.move(0.45 + 1.72 * np.cos(a), 1.72 * np.sin(a), -0.3))
    return m


def _sail() -> Shape:
    """One lattice sail pointing up, in the plane y = 0."""
    slats = [box(0.5, 0.04, 0.04).move(0.27, 0, 0.55 + 0.2 * i) for i in range(9)]
    return join([box(0.1, 0.1, 2.4, 0.02).move(0, 0, 1.2), box(0.05, 0.05, 1.7).move(0.52, 0, 1.35), *slats])


def windmill() -> Model:
    """A Dutch mill with four lattice sails."""
    brick, wall, cap = (
        Material("brick", "a8482c", 0.85),
        Material("wall", "f0e6d0", 0.8),
        Material("thatch", "8c5a2c", 0.9),
    )
    wood, canvas, grass = (
        Material("wood", "6e4220", 0.7),
        Material("canvas", "f6efe0", 0.8),
        Material("grass", "5aa238", 0.9),
    )
    slats, hedge = Material("slats", "c58f4e", 0.7), Material("hedge", "2f7f34", 0.9)
    yellow, pink, path = Material("yellow", "ffcc10"), Material("pink", "f060a8"), Material("path", "d9b27c", 0.9)
    red, pane, green = Material("red", "c4202a", 0.5), Material("pane", "6cc0ee", 0.2), Material("green", "1f7a44", 0.6)
    m = Model()

    def eight(r0: float, z0: float, r1: float, z1: float) -> Shape:
        return lathe([(0, z0), (r0, z0), (r1, z1), (0, z1)], 8).turn("z", 22.5)

    lawn = [*[(1.35 * np.cos(a), 1.25 * np.sin(a)) for a in np.linspace(0, np.pi, 20)], (-1.7, -2.4), (1.7, -2.4)]
    m.add(grass, extrude(lawn, 0.14, 0.04).move(z=-0.07))
    m.add(hedge, box(0.24, 1.5, 0.5, 0.1, 3).move(1.62, -1.62, 0.24).mirror())
    m.add(path, box(0.5, 1.5, 0.04, 0.01).move(0, -1.7, 0.0))
    for i in range(6):
        for j, paint in enumerate((red, yellow, pink)):
            for side in (-1, 1):
                spot = side * (0.45 + 0.21 * i), -1.45 - 0.34 * j
                m.add(green, cylinder(0.028, 0.2, 0.0, 6).move(*spot))
                m.add(paint, lathe([(0, 0.17), (0.075, 0.22), (0.085, 0.3), (0.05, 0.36), (0.0, 0.32)], 10).move(*spot))
    m.add(brick, eight(1.12, 0, 1.02, 0.9))
    m.add(wood, cylinder(1.45, 0.09, 0.02, 40).move(z=0.9), torus(1.38, 0.03, 40, 8).move(z=1.28))
    m.add(
        wood,
        beam((1.38, 0, 0.95), (1.38, 0, 1.28), 0.028, 6).around(16),
        beam((1.0, 0, 0.55), (1.38, 0, 0.92), 0.04, 6).around(8, 22.5),
    )
    m.add(wall, eight(0.98, 0.98, 0.66, 2.9))
    m.add(green, eight(0.72, 2.9, 0.72, 3.0))
    m.add(cap, lathe([(0.76, 2.98), (0.74, 3.2), (0.6, 3.5), (0.34, 3.72), (0, 3.8)], 32).scale(1, 1.12, 1))
    m.add(wood, beam((0, -0.5, 3.3), (0, -1.18, 3.38), 0.09, 14))
    m.add(red, cylinder(0.19, 0.26, 0.04, 24).turn("x", 90).move(0, -0.98, 3.38))
    for i in range(4):
        spin = 45.0 + 90 * i - 12
        m.add(slats, _sail().turn("y", spin).move(0, -1.1, 3.38))
        rows = np.array([[[x, 0.07, z] for x in (0.08, 0.5)] for z in (0.52, 2.18)])
        m.add(canvas, sheet(rows).turn("y", spin).move(0, -1.1, 3.38))
    arch = [(-0.2, 0), (0.2, 0), *[(0.2 * np.cos(a), 0.48 + 0.2 * np.sin(a)) for a in np.linspace(0, np.pi, 12)]]
    m.add(canvas, upright([(x * 1.3, z * 1.1) for x, z in arch], 0.1, 0.02).move(0, -1.02, 0))
    m.add(green, upright(arch, 0.16, 0.02).move(0, -1.02, 0))
    for x, z, y in ((0, 1.6, -0.82), (0, 2.35, -0.7)):
        m.add(green, box(0.32, 0.14, 0.42, 0.02).move(x, y, z))
        m.add(pane, box(0.22, 0.18, 0.32).move(x, y, z))
    return m
