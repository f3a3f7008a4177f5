"""A sailboat, a rocket, a steam engine, a hot-air balloon and an airliner."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import (
    Shape,
    ball,
    beam,
    box,
    cylinder,
    join,
    lathe,
    sheet,
    spline,
    torus,
    tube,
    upright,
)


def _hull(length: float, beam_half: float, low: float, high: float) -> Shape:
    """A boat hull along x between two fractions of its depth (0: keel, 1: deck)."""
    rows = []
    for t in np.linspace(0, 1, 40):
        wide = beam_half * (1 - t**2.6) * (0.72 + 0.55 * t)
        deck, keel = 0.78 + 0.3 * t**3, 0.18 * t**4
        x = length * (t - 0.5)
        z = keel + (deck - keel) * np.linspace(low, high, 12)
        half = wide * np.linspace(low, high, 12) ** 0.42
        over = 0.28 * t**6 * length * 0.3 * np.linspace(low, high, 12)
        side = np.stack([x + over, half, z], 1)
        rows.append(np.concatenate([side[::-1] * [1, -1, 1], side]))
    points = np.array(rows)
    stern = np.stack([points[0, :12][::-1], points[0, 12:]], 1)
    return join([sheet(points), sheet(stern)])


def sailboat() -> Model:
    """A small yacht with a mainsail, a jib and a pennant."""
    red, white, deck = Material("red", "d0202a", 0.3), Material("white", "f6f4ee", 0.4), Material("deck", "c98d4a", 0.6)
    sail, blue, mast = Material("sail", "fbf3dc", 0.8), Material("blue", "1f6fd0", 0.7), Material("mast", "a8703a", 0.5)
    m = Model()
    m.add(red, _hull(3.6, 0.72, 0.0, 0.72))
    m.add(white, _hull(3.6, 0.72, 0.72, 1.0))
    top = _hull(3.6, 0.68, 0.9, 0.94).vertices[: 40 * 24].reshape(40, 24, 3)
    m.add(deck, sheet(np.stack([top[:, 0], top[:, -1]], 1)))
    m.add(white, box(1.0, 0.62, 0.34, 0.1, 3).move(-0.45, 0, 0.92))
    for x in (-0.72, -0.45, -0.18):
        m.add(blue, cylinder(0.085, 0.68, 0.02, 20).move(z=-0.34).turn("x", 90).move(x, 0, 0.95))
    m.add(mast, beam((0.3, 0, 0.7), (0.3, 0, 4.6), 0.055, 14), beam((0.3, 0, 1.25), (-1.75, 0, 1.2), 0.05, 12))

    def cloth(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], puff: float) -> Shape:
        s, t = np.meshgrid(np.linspace(0, 1, 18), np.linspace(0, 1, 22))
        p = [np.array([q[0], 0, q[1]]) for q in (a, b, c)]
        points = (1 - t)[..., None] * ((1 - s)[..., None] * p[0] + s[..., None] * p[1]) + t[..., None] * p[2]
        points[..., 1] -= puff * np.sin(np.pi * s) * np.sin(np.pi * np.minimum(0.15 + t, 1)) * (1 - t)
        return sheet(points)

    m.add(sail, cloth((0.22, 1.32), (-1.7, 1.27), (0.22, 4.45), 0.42))
    m.add(blue, cloth((0.42, 1.1), (2.05, 1.22), (0.36, 3.95), -0.34).scale(1, -1, 1))
    m.add(red, cloth((0.3, 4.35), (0.3, 4.68), (-0.4, 4.5), 0.08))
    m.add(mast, beam((0.3, 0, 4.3), (2.15, 0, 1.12), 0.018, 6), beam((0.3, 0, 4.5), (-1.75, 0, 0.8), 0.012, 6))
    return m


def rocket() -> Model:
    """A cartoon rocket with red fins and a round window."""
    white, red, blue = (
        Material("white", "f0f0f4", 0.35),
        Material("red", "d41420", 0.35),
        Material("glass", "3aa8f0", 0.1),
    )
    steel, fire, core = (
        Material("steel", "9098a8", 0.35),
        Material("fire", "ff6a00", glow=1.2),
        Material("core", "ffe030", glow=1.5),
    )
    m = Model()
    curve = spline([(0.5, 0.0), (0.72, 0.6), (0.82, 1.3), (0.76, 2.1), (0.5, 3.0), (0.0, 3.75)], 80)
    split = int(np.argmax(curve[:, 1] > 2.65))
    m.add(white, lathe([(0, 0), *curve[: split + 1]], 64))
    m.add(
        red,
        lathe([*curve[split:-1], (0.0, 3.75)], 64),
        cylinder(0.05, 0.35, 0.02, top=0.02).move(z=3.7),
        ball(0.08, 16).move(z=4.08),
    )
    m.add(red, lathe([(0.74, 0.62), (0.77, 0.62), (0.8, 0.82), (0.76, 0.82)], 64))
    fin = [
        *spline([(0.55, 1.25), (1.05, 0.85), (1.45, 0.15), (1.5, -0.75)], 16),
        *spline([(1.3, -0.45), (0.95, -0.1), (0.45, 0.15)], 10),
    ]
    m.add(red, upright(fin, 0.14, 0.04).around(4, 45))
    m.add(steel, lathe([(0, 0.02), (0.42, 0.02), (0.52, -0.3), (0.46, -0.3), (0.38, -0.05)], 40))
    m.add(steel, torus(0.33, 0.075, 36, 10).turn("x", 90).move(0, -0.75, 1.85).around(4))
    m.add(blue, ball(0.33, 28).scale(1, 0.3, 1).move(0, -0.75, 1.85).around(4))
    m.add(
        fire,
        lathe(spline([(0.36, -0.2), (0.4, -0.5), (0.2, -1.0), (0.0, -1.4)], 16), 32, lambda a: 1 + 0.1 * np.cos(6 * a)),
    )
    m.add(core, lathe(spline([(0.42, -0.18), (0.3, -0.3), (0.41, -0.42)], 8), 32, lambda a: 1 + 0.06 * np.cos(9 * a)))
    return m


def _wheel(radius: float, spokes: int) -> tuple[Shape, Shape]:
    """Rim with spokes, and hub, around y."""
    rim = [torus(radius - 0.06, 0.07, 40, 10).scale(1, 1, 1.2)]
    rim += [box(0.05, 2 * (radius - 0.06), 0.06).turn("z", 180.0 * i / spokes) for i in range(spokes)]
    return join(rim).turn("x", 90), cylinder(0.11, 0.2, 0.03, 20).move(z=-0.1).turn("x", 90)


def locomotive() -> Model:
    """A steam engine with a funnel, a cab and red wheels."""
    green, red, gold = (
        Material("green", "17803c", 0.35),
        Material("red", "cf1c22", 0.4),
        Material("brass", "f0b428", 0.3),
    )
    iron, dark, glass = (
        Material("iron", "5a6270", 0.5),
        Material("soot", "3a3e48", 0.6),
        Material("glass", "9fdcff", 0.1),
    )
    smoke, lamp = Material("smoke", "dfe3ea", 0.9), Material("lamp", "fff4c0", glow=0.8)
    m = Model()
    m.add(green, cylinder(0.62, 2.5, 0.05, 56).turn("y", 90).move(-0.7, 0, 1.35))
    m.add(
        dark,
        cylinder(0.66, 0.5, 0.06, 56).turn("y", 90).move(1.7, 0, 1.35),
        cylinder(0.45, 0.08, 0.03).turn("y", 90).move(2.17, 0, 1.35),
    )
    for x in (-0.35, 0.35, 1.05, 1.68):
        m.add(gold, torus(0.62, 0.035, 56, 8).turn("y", 90).move(x, 0, 1.35))
    m.add(dark, cylinder(0.2, 0.6, 0.0, 32, top=0.24).move(1.9, 0, 1.9))
    m.add(dark, lathe([(0.24, 2.45), (0.42, 2.8), (0.44, 2.9), (0.36, 2.92), (0.3, 2.75), (0, 2.7)], 40).move(1.9))
    m.add(gold, torus(0.43, 0.045, 40, 10).move(1.9, 0, 2.88))
    m.add(
        gold,
        lathe(spline([(0.27, 1.85), (0.25, 2.15), (0.16, 2.32), (0, 2.36)], 14), 32).move(0.7),
        cylinder(0.1, 0.5, 0.03).move(0.0, 0, 1.85),
    )
    m.add(red, box(4.1, 1.1, 0.22, 0.05).move(0.1, 0, 0.72))
    m.add(green, box(1.2, 1.36, 0.85, 0.05).move(-1.3, 0, 1.2))
    for y in (-0.64, 0.64):
        for x in (-1.84, -1.3, -0.76):
            m.add(green, box(0.12, 0.08, 0.85).move(x, y, 1.98))
        m.add(glass, box(1.0, 0.03, 0.6).move(-1.3, y, 1.93))
    m.add(green, box(0.06, 1.3, 0.8).move(-0.74, 0, 1.95))
    roof = [(x, 2.4 + 0.22 * (1 - (x / 0.85) ** 2)) for x in np.linspace(-0.85, 0.85, 16)]
    m.add(red, upright([*roof, (0.85, 2.32), (-0.85, 2.32)], 1.55, 0.03).turn("z", 90).move(-1.3))
    for y in (-1, 1):
        for x in (-1.35, -0.35, 0.65):
            rim, hub = _wheel(0.5, 6)
            m.add(red, rim.move(x, y * 0.62, 0.5))
            m.add(gold, hub.move(x, y * 0.66, 0.5))
        for x in (1.4, 1.95):
            rim, hub = _wheel(0.32, 4)
            m.add(red, rim.move(x, y * 0.62, 0.32))
            m.add(gold, hub.move(x, y * 0.66, 0.32))
        m.add(iron, box(2.3, 0.06, 0.12, 0.02).move(-0.3, y * 0.76, 0.36))
        m.add(
            iron,
            cylinder(0.2, 0.7, 0.04, 28).turn("y", 90).move(1.3, y * 0.72, 0.78),
            beam((0.65, y * 0.76, 0.38), (1.4, y * 0.72, 0.78), 0.04),
        )
    m.add(
        iron,
        beam((2.1, -0.35, 0.72), (2.34, -0.35, 0.72), 0.1, 16),
        beam((2.1, 0.35, 0.72), (2.34, 0.35, 0.72), 0.1, 16),
    )
    for i in range(9):
        y = -0.6 + 0.15 * i
        m.add(red, beam((2.15, 0.75 * y, 0.62), (2.75 - 0.5 * abs(y), y, 0.06), 0.05, 8))
    m.add(red, beam((2.45, -0.6, 0.08), (2.75, 0, 0.08), 0.05, 8), beam((2.45, 0.6, 0.08), (2.75, 0, 0.08), 0.05, 8))
    m.add(gold, cylinder(0.2, 0.24, 0.04, 28).turn("y", 90).move(2.05, 0, 2.13))
    m.add(lamp, ball(0.17, 24).scale(0.4, 1, 1).move(2.29, 0, 2.13))
    for x, z, r in ((1.85, 3.2, 0.26), (1.6, 3.52, 0.34), (1.2, 3.72, 0.3), (0.85, 3.88, 0.22)):
        m.add(smoke, ball(r, 24).move(x, 0, z))
    return m


def _stripes() -> Image.Image:
    """Rainbow gores with a zigzag band."""
    image = Image.new("RGB", (768, 512))
    draw = ImageDraw.Draw(image)
    colors = [(214, 28, 36), (255, 196, 20), (28, 110, 214), (250, 120, 16), (40, 160, 60), (150, 50, 170)]
    for i in range(12):
        draw.rectangle([i * 64, 0, i * 64 + 63, 511], fill=colors[i % 6])
    zigzag = [(x, 285 + (32 if (x // 32) % 2 else -32)) for x in range(0, 769, 32)]
    draw.line(zigzag, fill=(255, 250, 235), width=26, joint="curve")
    return image


def balloon() -> Model:
    """A hot-air balloon with coloured gores and a wicker basket."""
    cloth, wicker, rope = (
        Material("stripes", "ffffff", 0.6, texture=_stripes),
        Material("wicker", "b87333", 0.85),
        Material("rope", "e0c890"),
    )
    band, fire = Material("band", "d61c24", 0.6), Material("flame", "ffb020", glow=1.5)
    m = Model()
    curve = spline([(0.42, 0.0), (0.75, 0.55), (1.28, 1.3), (1.52, 2.15), (1.25, 2.95), (0.68, 3.4), (0.0, 3.52)], 56)
    curve[-1, 0] = 0.0
    m.add(cloth, lathe(curve, 144, lambda a: 1 + 0.025 * np.abs(np.sin(6 * a))))
    m.add(band, lathe([(0.41, 0.08), (0.46, 0.06), (0.42, -0.1), (0.38, -0.1)], 48))
    weave = []
    for i in range(9):
        weave.append(torus(0.42 + 0.006 * i, 0.045, 40, 8).move(z=-1.5 + 0.075 * i))
    m.add(wicker, *weave, cylinder(0.42, 0.06, 0.02).move(z=-1.55), torus(0.5, 0.06, 40, 12).move(z=-0.86))
    m.add(rope, tube([(0.47, 0, -0.86), (0.41, 0, -0.05)], 0.024, 8).around(8))
    m.add(fire, lathe(spline([(0.09, -0.55), (0.13, -0.4), (0.0, 0.05)], 10), 20), cylinder(0.1, 0.15).move(z=-0.7))
    return m


def _wing(root: float, tip: float, span: float, sweep: float, thick: float) -> Shape:
    """A tapered, swept wing from the origin towards +y, leading edge at +x."""
    outline = spline(
        [(0.5, 0), (0.35, 0.5), (-0.1, 0.42), (-0.5, 0.03), (-0.5, -0.03), (-0.1, -0.35), (0.35, -0.4)], 28, closed=True
    )
    rows = []
    for t in [*np.linspace(0, 0.96, 8), 0.985, 1.0]:
        chord = (root + (tip - root) * t) * (1 if t < 0.97 else 0.75 if t < 1 else 0.1)
        section = outline * [chord, thick * chord]
        rows.append(
            np.stack([section[:, 0] - sweep * t, np.full(len(section), span * t), section[:, 1] + 0.1 * span * t], 1)
        )
    points = np.array(rows)
    return sheet(np.concatenate([points, points[:, :1]], axis=1))


def airplane() -> Model:
    """An airliner with two engines under swept wings."""
    white = Material("white", "ffffff")
    m = Model()
    curve = spline(
        [
            (0, -3.2),
            (0.12, -3.1),
            (0.3, -2.2),
            (0.42, -1.2),
            (0.44, 0),
            (0.44, 1.7),
            (0.4, 2.3),
            (0.27, 2.7),
            (0.0, 2.92),
        ],
        70,
    )
    curve[[0, -1], 0] = 0.0

    def lift(v: np.ndarray) -> np.ndarray:
        v[:, 2] += 0.07 * np.clip(-1.0 - v[:, 0], 0, None) ** 1.4
        return v

    m.add(white, lathe(curve, 72).turn("y", 90).bend(lift))
    m.add(white, _wing(1.25, 0.4, 2.9, 1.45, 0.12).move(0.35, 0.2, -0.15).mirror("y"))
    m.add(white, _wing(0.75, 0.32, 1.15, 0.6, 0.1).move(-2.65, 0.08, 0.22).mirror("y"))
    fin = [(-1.75, 0.3), (-2.3, 0.55), (-2.95, 1.55), (-3.4, 1.55), (-3.05, 0.35)]
    m.add(white, upright(fin, 0.1, 0.03))
    pod = lathe(
        [
            (0.0, -0.5),
            (0.14, -0.5),
            (0.22, -0.1),
            (0.26, 0.3),
            (0.24, 0.42),
            (0.2, 0.4),
            (0.18, 0.2),
            (0.06, 0.2),
            (0, 0.36),
        ],
        40,
    )
    engine = join([pod.turn("y", 90).move(0, 0, -0.33), box(0.6, 0.06, 0.3).move(-0.12, 0, -0.1)])
    m.add(white, engine.move(0.4, 1.12, -0.1).mirror("y"))
    window = cylinder(0.055, 0.04, 0.0, 14).turn("x", 90)
    for i in range(15):
        m.add(white, window.move(-1.55 + 0.22 * i, -0.42, 0.12).mirror("y"))
    m.add(white, box(0.2, 0.04, 0.42, 0.02).move(1.95, -0.425, 0.02).mirror("y"))
    for y in (-0.15, -0.05, 0.05, 0.15):
        m.add(white, box(0.05, 0.085, 0.13, 0.02).turn("y", -42).turn("z", 90 * y).move(2.52 - 2.5 * y * y, y, 0.29))
    return m
