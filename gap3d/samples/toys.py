"""A rubber duck, a tin robot, dice, a chess rook and a guitar."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import (
    Shape,
    ball,
    beam,
    box,
    cap,
    cylinder,
    extrude,
    join,
    lathe,
    sheet,
    spline,
    torus,
    tube,
)


def duck() -> Model:
    """A bath duck looking to the right."""
    yellow, orange = Material("yellow", "ffd000", 0.35), Material("orange", "ff6a0a", 0.4)
    white, black = Material("white", "ffffff", 0.3), Material("black", "18181c", 0.2)
    water = Material("water", "38b6e8", 0.15)
    m = Model()

    def body(v: np.ndarray) -> np.ndarray:
        x, y, z = v.T
        tail = np.clip(-x - 0.25, 0, None)
        return np.stack(
            [1.25 * x, 0.92 * y * (1 - 0.5 * tail), 0.72 * np.where(z < 0, 0.85 * z, z) + 1.05 * tail**1.6], 1
        )

    m.add(yellow, ball(1.0, 56).bend(body).move(z=0.6))
    m.add(yellow, ball(0.62, 44).move(0.55, 0, 1.62), ball(0.5, 32).scale(1, 0.95, 0.7).move(0.55, 0, 1.1))
    m.add(yellow, tube(spline([(0.55, 0, 2.2), (0.42, 0, 2.35), (0.25, 0, 2.36)], 10), np.linspace(0.1, 0.01, 10), 12))

    def feather(v: np.ndarray) -> np.ndarray:
        v[:, 2] += 0.45 * np.clip(-v[:, 0], 0, None) ** 2
        return v

    m.add(yellow, ball(0.62, 32).scale(1, 0.3, 0.62).bend(feather).turn("z", -8).move(-0.2, -0.9, 0.75).mirror("y"))

    def bill(v: np.ndarray) -> np.ndarray:
        v[:, 2] += 0.5 * np.clip(v[:, 0], 0, None) ** 2
        return v

    m.add(orange, ball(0.34, 28).scale(1.15, 0.95, 0.3).bend(bill).move(1.25, 0, 1.56))
    m.add(orange, ball(0.28, 28).scale(1.05, 0.85, 0.28).move(1.18, 0, 1.43))
    ripple = [(r, 0.05 + 0.045 * np.cos(9 * r) * min(1.0, 2.4 - r)) for r in np.linspace(0, 1.6, 40)]
    m.add(water, lathe([*ripple, (1.62, -0.04), (1.55, -0.1), (0.0, -0.1)], 64).move(0.55, -0.15, 0.2))
    m.add(white, ball(0.15, 24).scale(1, 0.55, 1.15).turn("z", -50 + 90).move(0.94, -0.4, 1.82).mirror("y"))
    m.add(black, ball(0.09, 20).scale(1, 0.6, 1.15).turn("z", -50 + 90).move(1.0, -0.46, 1.83).mirror("y"))
    return m


def robot() -> Model:
    """A tin robot with a dial, a grille mouth and claws."""
    body, steel, red = (
        Material("body", "3f8fd0", 0.35),
        Material("steel", "b4bcc8", 0.35),
        Material("red", "dc1e28", 0.4),
    )
    yellow, eye, dark = (
        Material("yellow", "ffc814", 0.4),
        Material("eyes", "fff27a", glow=1.2),
        Material("dark", "3a4250", 0.5),
    )
    green = Material("green", "30c050", 0.4)
    m = Model()
    m.add(body, box(1.5, 1.0, 1.55, 0.14, 4).move(0, 0, 1.85), box(1.2, 0.95, 0.95, 0.14, 4).move(0, 0, 3.25))
    m.add(steel, cylinder(0.25, 0.3, 0.03, 28).move(z=2.55), box(1.1, 0.06, 0.95, 0.04).move(0, -0.5, 1.9))
    for x in (-0.28, 0.28):
        m.add(dark, cylinder(0.21, 0.1, 0.03, 28).turn("x", 90).move(x, -0.42, 3.38))
        m.add(eye, ball(0.16, 24).scale(1, 0.5, 1).move(x, -0.52, 3.38))
        m.add(
            red, cylinder(0.16, 0.16, 0.03, 24).turn("y", 90 if x > 0 else -90).move(0.58 if x > 0 else -0.58, 0, 3.3)
        )
    m.add(steel, box(0.62, 0.08, 0.24, 0.03).move(0, -0.47, 3.0))
    m.add(dark, *(box(0.05, 0.1, 0.18).move(-0.24 + 0.12 * i, -0.48, 3.0) for i in range(5)))
    m.add(steel, beam((0, 0, 3.7), (0, 0, 4.15), 0.04, 10), cylinder(0.14, 0.1, 0.03, 24).move(z=3.7))
    m.add(red, ball(0.13, 20).move(z=4.2))
    m.add(yellow, cylinder(0.27, 0.06, 0.02, 32).turn("x", 90).move(-0.2, -0.5, 2.1))
    m.add(red, box(0.04, 0.03, 0.24).move(0, 0, 0.1).turn("y", 35).move(-0.2, -0.57, 2.06))
    for i, paint in enumerate((red, yellow, green)):
        m.add(paint, ball(0.09, 20).scale(1, 0.7, 1).move(-0.3 + 0.3 * i, -0.54, 1.62))
    m.add(dark, *(box(0.3, 0.03, 0.04).move(0.32, -0.53, 1.96 + 0.1 * i) for i in range(4)))
    arm = spline([(0.78, 0, 2.35), (1.15, 0, 2.3), (1.3, -0.05, 1.85), (1.35, -0.35, 1.5)], 30)
    ridges = 0.13 * (1 + 0.22 * (np.arange(30) % 3 == 0))
    m.add(steel, tube(arm, ridges, 18, up=(0, 1, 0)).mirror(), ball(0.22, 24).move(0.8, 0, 2.35).mirror())
    claw = join(
        tube(spline([(0, 0, 0), (s * 0.2, 0, -0.12), (s * 0.17, 0, -0.36), (s * 0.05, 0, -0.46)], 12), 0.06, 10)
        for s in (-1, 1)
    )
    m.add(red, claw.turn("x", -35).move(1.35, -0.42, 1.42).mirror(), ball(0.17, 20).move(1.35, -0.4, 1.45).mirror())
    leg = spline([(0.38, 0, 1.1), (0.38, 0, 0.7), (0.38, 0, 0.3)], 18)
    m.add(steel, tube(leg, 0.17 * (1 + 0.18 * (np.arange(18) % 3 == 0)), 18).mirror())
    m.add(red, box(0.55, 0.85, 0.34, 0.12, 4).move(0.4, -0.12, 0.17).mirror())
    return m


def _pips(ground: tuple[int, int, int], ink: tuple[int, int, int]) -> Image.Image:
    """A 3 x 2 atlas of the six sides; opposite sides, which share a column pair, add up to seven."""
    size, scale = 256, 2
    image = Image.new("RGB", (3 * size * scale, 2 * size * scale), ground)
    draw = ImageDraw.Draw(image)
    low, mid, high = 0.26, 0.5, 0.74
    spots = {1: [(mid, mid)], 2: [(low, low), (high, high)], 4: [(low, low), (low, high), (high, low), (high, high)]}
    spots |= {3: spots[1] + spots[2], 5: spots[1] + spots[4], 6: [*spots[4], (mid, low), (mid, high)]}
    for tile, value in enumerate((3, 4, 2, 5, 1, 6)):
        for u, v in spots[value]:
            x, y = (tile % 3 + u) * size * scale, (1 - tile // 3 + 1 - v) * size * scale
            r = 0.115 * size * scale
            draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    return image.resize((3 * size, 2 * size), Image.Resampling.LANCZOS)


def _ivory_pips() -> Image.Image:
    return _pips((250, 246, 234), (20, 20, 26))


def _red_pips() -> Image.Image:
    return _pips((206, 16, 28), (255, 252, 244))


def dice() -> Model:
    """A white die and a red die."""
    ivory, red = (
        Material("ivory", "ffffff", 0.3, texture=_ivory_pips),
        Material("red", "ffffff", 0.3, texture=_red_pips),
    )
    m = Model()
    m.add(ivory, box(1, 1, 1, 0.16, 7).turn("z", 32).move(-0.62, 0, 0.5))
    m.add(red, box(1, 1, 1, 0.16, 7).turn("x", 90).turn("z", -24).move(0.62, -0.55, 0.5))
    return m


def rook() -> Model:
    """A chess rook."""
    white = Material("white", "ffffff")
    foot = [(0, 0), (0.95, 0), (1.0, 0.05), (1.0, 0.2), (0.95, 0.27), (0.85, 0.3), (0.85, 0.38), (0.78, 0.46)]
    stem = spline([(0.72, 0.5), (0.56, 0.8), (0.48, 1.3), (0.47, 1.8)], 18)
    collar = [
        (0.62, 1.84),
        (0.66, 1.9),
        (0.62, 1.96),
        (0.55, 1.98),
        (0.58, 2.05),
        (0.74, 2.12),
        (0.76, 2.2),
        (0.76, 2.42),
        (0, 2.42),
    ]
    m = Model()
    m.add(white, lathe([*foot, *stem, *collar], 128))
    angle = np.radians(np.linspace(-22, 22, 12))
    arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    merlon = extrude(np.concatenate([arc * 0.76, arc[::-1] * 0.5]), 0.36)
    m.add(white, merlon.move(z=2.6).around(6))
    return m


def guitar() -> Model:
    """An acoustic guitar leaning back."""
    top, side, dark = Material("top", "e8a24c", 0.3), Material("side", "8a4518", 0.35), Material("hole", "2a1a12", 0.7)
    neck, board, steel = (
        Material("neck", "a8622c", 0.4),
        Material("board", "5a3420", 0.4),
        Material("steel", "d8dce2", 0.3),
    )
    cream = Material("cream", "fff2d4", 0.4)
    rug = Material("rug", "b81e3c", 0.95)
    half = [
        (0, 0),
        (0.62, 0.06),
        (0.98, 0.42),
        (0.98, 0.9),
        (0.72, 1.3),
        (0.66, 1.55),
        (0.76, 1.9),
        (0.66, 2.25),
        (0.3, 2.42),
        (0, 2.44),
    ]
    outline = spline([*half, *[(-x, z) for x, z in half[-2:0:-1]]], 96, closed=True)
    m = Model()

    def plate(points: np.ndarray, depth: float, bevel: float, y: float) -> Shape:
        return extrude(points, depth, bevel).turn("x", 90).move(0, y)

    wall = np.stack([np.column_stack([outline[:, 0], np.full(96, y), outline[:, 1]]) for y in (-0.21, 0.21)])
    m.add(side, sheet(np.concatenate([wall, wall[:, :1]], axis=1)), cap(outline).turn("x", 90).move(0, 0.21))

    def face(points: np.ndarray, y: float) -> Shape:
        return cap(points).turn("x", 90).move(0, y)

    middle = outline.mean(axis=0)
    m.add(top, face(middle + (outline - middle) * 0.97, -0.216))
    edge = np.column_stack([outline[:, 0], np.full(len(outline), -0.2), outline[:, 1]])
    m.add(cream, tube(edge, 0.03, 8, closed=True, up=(0, 1, 0)))
    m.add(dark, face(0.3 * np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 6.1, 36)]) + [0, 1.62], -0.226))
    m.add(cream, torus(0.33, 0.022, 48, 8).turn("x", 90).move(0, -0.235, 1.62))
    m.add(
        side,
        torus(0.38, 0.018, 48, 8).turn("x", 90).move(0, -0.235, 1.62),
        box(0.8, 0.09, 0.15, 0.03).move(0, -0.26, 0.68),
    )
    m.add(cream, box(0.5, 0.06, 0.03).move(0, -0.32, 0.7))
    guard = spline([(0.36, 1.4), (0.66, 1.2), (0.7, 0.95), (0.4, 0.92), (0.26, 1.2)], 32, closed=True)
    m.add(side, face(guard, -0.228))
    m.add(neck, box(0.26, 0.2, 2.0, 0.06, 4).move(0, -0.13, 3.3))
    m.add(board, box(0.28, 0.08, 2.55, 0.01).move(0, -0.26, 3.1))
    frets = [1.85 + 2.52 * 2 ** (-i / 12) for i in range(1, 17)]
    m.add(steel, *(box(0.28, 0.03, 0.022).move(0, -0.3, 1.55 + 2 * (z - 2.6) + 0.1) for z in frets if z > 2.72))
    m.add(cream, *(ball(0.035, 12).scale(1, 0.4, 1).move(0, -0.3, z) for z in (2.7, 3.05, 3.35, 3.75)))
    head = [(-0.15, 0), (0.15, 0), (0.24, 0.15), (0.22, 0.75), (0.1, 0.83), (-0.1, 0.83), (-0.22, 0.75), (-0.24, 0.15)]
    m.add(side, plate(np.array(head), 0.13, 0.02, 0.0).turn("x", -8).move(0, -0.18, 4.3))
    m.add(cream, box(0.27, 0.06, 0.05).move(0, -0.3, 4.36))
    for x in (-1, 1):
        for i in range(3):
            z = 4.56 + 0.2 * i
            m.add(
                steel,
                beam((x * 0.1, -0.2, z), (x * 0.36, -0.16, z), 0.025, 8),
                cylinder(0.035, 0.1).turn("x", 90).move(x * 0.12, -0.16, z),
            )
            m.add(cream, ball(0.075, 16).scale(1, 0.6, 0.8).move(x * 0.38, -0.16, z))
    for place in np.linspace(-0.1, 0.1, 6):
        m.add(steel, beam((place * 1.5, -0.335, 0.7), (place, -0.325, 4.36), 0.013, 6))
    m = m.place(lambda s: s.turn("x", -16))
    m.add(rug, cylinder(1.15, 0.08, 0.03, 56).move(0, -0.45, -0.08))
    m.add(cream, lathe([(0.82, 0.012), (0.94, 0.012)], 56).move(0, -0.45))
    m.add(
        board,
        beam((0.12, 0.5, 2.3), (0.62, 1.15, -0.04), 0.045, 8).mirror(),
        beam((0.62, 0.35, 0.1), (0.62, -0.5, 0.04), 0.045, 8).mirror(),
    )
    m.add(
        board,
        beam((0.62, 0.3, 0.1), (0.62, 0.98, 0.28), 0.04, 8).mirror(),
        beam((-0.62, -0.46, 0.06), (0.62, -0.46, 0.06), 0.04, 8),
    )
    return m
