"""A bookcase, an armchair, an upright piano and a fireplace: each has a back that shows nothing."""

from __future__ import annotations

import numpy as np

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import Shape, ball, box, cylinder, join, lathe, pebble, spline, torus, tube, upright

_SPINES = ("d02030", "1f6fd0", "24a048", "f0b41e", "8a3cb0", "f07818", "20a8b0", "e85a90")


def bookcase() -> Model:
    """A wooden bookcase full of coloured books, its back closed."""
    wood, back, page = (
        Material("wood", "a5682e", 0.6),
        Material("back", "8a5424", 0.7),
        Material("pages", "fff4dc", 0.8),
    )
    books = [Material(f"cloth{i}", color, 0.5) for i, color in enumerate(_SPINES)]
    gold, pot, leaf = Material("gold", "f4cc50", 0.3), Material("pot", "f2f2ee", 0.4), Material("leaf", "3cae3c", 0.6)
    m = Model()
    for x in (-1.2, 1.2):
        m.add(wood, box(0.1, 0.8, 3.5, 0.02).move(x, 0, 1.75))
    m.add(wood, box(2.66, 0.9, 0.12, 0.03).move(0, 0, 3.53), box(2.5, 0.8, 0.22, 0.02).move(0, 0, 0.11))
    m.add(back, box(2.4, 0.05, 3.5).move(0, 0.38, 1.75))
    rng = np.random.default_rng(11)
    for shelf in range(4):
        floor = 0.24 + 0.82 * shelf
        if shelf:
            m.add(wood, box(2.36, 0.74, 0.07, 0.015).move(0, 0, floor - 0.035))
        x, last = -1.1, -1
        stop = 0.45 if shelf == 2 else 1.12
        while True:
            thick, tall, deep = (float(v) for v in rng.uniform([0.1, 0.52, 0.5], [0.2, 0.7, 0.62]))
            if x + thick > stop:
                break
            pick = int(rng.integers(0, 8))
            pick = (pick + 1) % 8 if pick == last else pick
            last, middle = pick, x + thick / 2
            y = -0.3 + deep / 2
            m.add(books[pick], box(thick, deep, tall, 0.025).move(middle, y, floor + tall / 2))
            m.add(page, box(thick - 0.04, deep - 0.06, 0.02).move(middle, y + 0.02, floor + tall))
            for z in (0.14, 0.8):
                m.add(gold, box(thick + 0.004, 0.02, 0.035).move(middle, -0.302, floor + tall * z))
            x += thick + 0.008
    m.add(pot, lathe([(0, 1.88), (0.14, 1.88), (0.2, 2.12), (0.16, 2.12), (0, 2.08)], 28).move(0.8, -0.1))
    for i in range(9):
        path = spline([(0, 0, 2.05), (0.1, 0, 2.3), (0.26, 0, 2.38 - 0.03 * (i % 3))], 8)
        m.add(
            leaf,
            tube(path, [0.02, 0.035, 0.05, 0.06, 0.055, 0.04, 0.025, 0.005], 8, flat=0.3)
            .turn("z", 40.0 * i)
            .move(0.8, -0.1),
        )
    return m


def armchair() -> Model:
    """A stuffed armchair with rolled arms and a high buttoned back."""
    cloth, seat, wood = (
        Material("cloth", "1f8a8c", 0.8),
        Material("seat", "2aa6a4", 0.8),
        Material("legs", "8a5228", 0.5),
    )
    button, pillow = Material("buttons", "f0c040", 0.5), Material("pillow", "f07a1e", 0.8)
    m = Model()
    m.add(cloth, box(2.3, 1.9, 0.6, 0.14, 4).move(0, 0, 0.65))
    m.add(seat, box(1.5, 1.6, 0.42, 0.18, 5).move(0, -0.2, 1.08))
    outline = [
        (-0.85, 0),
        (0.85, 0),
        *spline([(0.88, 0.9), (0.92, 1.5), (0.7, 1.86), (0, 1.98), (-0.7, 1.86), (-0.92, 1.5), (-0.88, 0.9)], 40),
    ]
    m.add(cloth, upright(outline, 0.5, 0.12).turn("x", -9).move(0, 0.68, 0.85))
    for row, count in enumerate((3, 2, 3)):
        for i in range(count):
            x, z = 0.5 * (i - (count - 1) / 2), 1.75 + 0.34 * row
            m.add(button, ball(0.065, 16).scale(1, 0.6, 1).move(x, 0.29 + 0.158 * (z - 0.85), z))
    for x in (-1, 1):
        m.add(cloth, box(0.36, 1.8, 0.95, 0.1, 4).move(x * 0.98, -0.06, 0.85))
        m.add(cloth, cylinder(0.29, 1.86, 0.1, 36).turn("x", 90).move(x * 1.03, 0.88, 1.36))
        m.add(button, cylinder(0.13, 0.06, 0.02, 24).turn("x", 90).move(x * 1.03, -0.96, 1.36))
        for y in (-0.75, 0.75):
            m.add(wood, cylinder(0.09, 0.4, 0.02, 20, top=0.14).move(x * 0.9, y, 0))
    m.add(pillow, ball(0.45, 32).bend(_cushion).turn("x", -22).turn("y", 14).move(0.32, 0.1, 1.62))
    return m


def _cushion(v: np.ndarray) -> np.ndarray:
    """A sphere pressed into a square pillow that stands up."""
    unit = v / 0.45
    flat = np.abs(unit[:, [0, 2]])
    size = np.maximum(flat.max(axis=1), 1e-6)
    square = unit[:, [0, 2]] * (np.hypot(flat[:, 0], flat[:, 1]) / size)[:, None] ** 0.75
    return np.stack([square[:, 0] * 0.42, unit[:, 1] * 0.17, square[:, 1] * 0.42], 1)


def piano() -> Model:
    """An upright piano with its stool, against a plain back."""
    wood, dark, ivory = (
        Material("wood", "8c3f1c", 0.3),
        Material("panel", "a9552a", 0.3),
        Material("ivory", "fffaf0", 0.3),
    )
    ebony, gold, paper = (
        Material("ebony", "1c1c20", 0.3),
        Material("brass", "f0b428", 0.3),
        Material("paper", "ffffff", 0.8),
    )
    ink, cushion = Material("ink", "303038", 0.8), Material("cushion", "c01828", 0.7)
    m = Model()
    m.add(wood, box(3.2, 0.8, 2.5, 0.04).move(0, 0.4, 1.25), box(3.4, 0.98, 0.1, 0.03).move(0, 0.38, 2.53))
    m.add(dark, box(2.7, 0.06, 0.8, 0.03).move(0, -0.01, 0.62), box(2.8, 0.05, 0.75, 0.03).move(0, -0.01, 1.98))
    m.add(wood, box(3.3, 0.85, 0.16, 0.03).move(0, -0.35, 1.27), box(3.2, 0.1, 0.3, 0.02).move(0, -0.02, 1.48))
    for x in (-1.56, 1.56):
        m.add(wood, box(0.2, 0.86, 0.36, 0.05, 3).move(x, -0.34, 1.43))
        m.add(
            wood,
            lathe(spline([(0.1, 0.0), (0.14, 0.2), (0.08, 0.5), (0.13, 0.95), (0.1, 1.2)], 16), 20).move(
                x * 0.98, -0.62
            ),
        )
        m.add(wood, box(0.24, 0.8, 0.12, 0.03).move(x, -0.4, 0.06))
    for i in range(28):
        x = -1.39 + 0.103 * i
        m.add(ivory, box(0.096, 0.6, 0.1, 0.012).move(x, -0.43, 1.4))
        if i % 7 not in (2, 6) and i < 27:
            m.add(ebony, box(0.06, 0.36, 0.1, 0.012).move(x + 0.05, -0.28, 1.47))
    m.add(cushion, box(2.9, 0.04, 0.04).move(0, -0.12, 1.46))
    m.add(paper, join(box(0.55, 0.02, 0.62).turn("x", -14).move(x, -0.16, 2.02) for x in (-0.29, 0.29)))
    for x in (-0.29, 0.29):
        for i in range(6):
            m.add(ink, box(0.42, 0.02, 0.022).move(0, 0, -0.22 + 0.088 * i).turn("x", -14).move(x, -0.172, 2.02))
    m.add(wood, box(1.4, 0.16, 0.06, 0.02).move(0, -0.16, 1.68))
    for x in (-0.25, 0, 0.25):
        m.add(gold, box(0.12, 0.3, 0.05, 0.02).move(x, -0.12, 0.14))
    for x in (-1.15, 1.15):
        m.add(gold, cylinder(0.12, 0.05, 0.01, 24).move(x, 0.3, 2.58), cylinder(0.04, 0.2, 0.0, 16).move(x, 0.3, 2.6))
        m.add(paper, cylinder(0.07, 0.42, 0.02, 20).move(x, 0.3, 2.75))
    m.add(cushion, box(1.2, 0.6, 0.14, 0.06, 4).move(0, -1.55, 0.78))
    m.add(wood, box(1.2, 0.6, 0.12, 0.03).move(0, -1.55, 0.66))
    for x in (-0.5, 0.5):
        for y in (-1.77, -1.33):
            m.add(wood, cylinder(0.05, 0.62, 0.01, 16, top=0.07).move(x, y, 0))
    return m


def _flame(size: float) -> Shape:
    """A pointed tongue of fire."""
    profile = spline([(0.02, 0), (0.3, 0.25), (0.22, 0.7), (0.08, 1.1), (0.0, 1.4)], 16) * size
    profile[-1, 0] = 0.0

    def sway(v: np.ndarray) -> np.ndarray:
        v[:, 0] += 0.12 * size * np.sin(3.2 * v[:, 2] / size)
        return v

    return lathe(profile, 20).scale(1, 0.6, 1).bend(sway)


def fireplace() -> Model:
    """A brick fireplace with burning logs under a mantelpiece."""
    mortar, soot, stone = (
        Material("mortar", "d8cfc0", 0.9),
        Material("soot", "4a3a34", 0.95),
        Material("stone", "b8b2a6", 0.8),
    )
    bricks = [Material(f"brick{i}", color, 0.85) for i, color in enumerate(("b0432a", "c4553a", "9c3822"))]
    wood, log, cut = Material("mantel", "8a5526", 0.5), Material("log", "7a4a26", 0.9), Material("cut", "e6bd80", 0.8)
    fire, core, ember = (
        Material("fire", "ff5a00", glow=1.6),
        Material("core", "ffd628", glow=2.0),
        Material("ember", "ff3000", glow=1.0),
    )
    white, gold, vase = (
        Material("dial", "fffaf0", 0.4),
        Material("gold", "f0b428", 0.3),
        Material("vase", "2474d0", 0.25),
    )
    m = Model()
    m.add(mortar, box(0.74, 0.9, 2.1).move(-1.18, 0, 1.05), box(0.74, 0.9, 2.1).move(1.18, 0, 1.05))
    m.add(mortar, box(3.1, 0.9, 0.62).move(0, 0, 1.87), box(1.7, 0.7, 1.3).move(0, 0.06, 2.95))
    m.add(soot, box(3.1, 0.06, 2.1).move(0, 0.45, 1.05), box(1.62, 0.85, 0.04).move(0, 0, 0.02))
    for row in range(10):
        z = 0.11 + 0.215 * row
        for i in range(9):
            x = -1.56 + 0.39 * i + (0.195 if row % 2 else 0.0)
            left, right = max(x - 0.18, -1.55), min(x + 0.18, 1.55)
            for a, b in ((left, min(right, -0.81)), (max(left, 0.81), right)) if z < 1.5 else ((left, right),):
                if b - a > 0.08:
                    m.add(bricks[(i * 7 + row * 5) % 3], box(b - a, 0.1, 0.18, 0.02).move((a + b) / 2, -0.45, z))
    for row in range(5):
        for i in range(5):
            x = -0.78 + 0.39 * i + (0.195 if row % 2 else 0.0)
            left, right = max(x - 0.18, -0.85), min(x + 0.18, 0.85)
            if right - left > 0.08:
                piece = box(right - left, 0.08, 0.18, 0.02).move((left + right) / 2, -0.3, 2.52 + 0.215 * row)
                m.add(bricks[(i * 5 + row * 7) % 3], piece)
    m.add(wood, box(3.6, 1.15, 0.16, 0.04).move(0, -0.08, 2.26), box(1.95, 0.85, 0.14, 0.03).move(0, 0.04, 3.62))
    m.add(stone, box(3.6, 1.7, 0.14, 0.04).move(0, -0.35, -0.07))
    for a, y, z in ((8, -0.2, 0.16), (-10, 0.12, 0.16), (4, -0.02, 0.38)):
        m.add(log, cylinder(0.13, 1.15, 0.02, 20).move(z=-0.575).turn("y", 90).turn("z", a).move(0, y, z))
        m.add(cut, cylinder(0.1, 1.17, 0.0, 20).move(z=-0.585).turn("y", 90).turn("z", a).move(0, y, z))
    for x, size in ((-0.34, 0.62), (0.02, 0.85), (0.36, 0.6)):
        m.add(fire, _flame(size).move(x, 0.02, 0.3))
        m.add(core, _flame(size * 0.6).move(x, -0.14, 0.34))
    m.add(ember, *(pebble(0.07, i, 0.2, 1).move(-0.5 + 0.2 * i, -0.28 + 0.06 * (i % 2), 0.07) for i in range(6)))
    m.add(
        wood,
        cylinder(0.3, 0.2, 0.04, 36).turn("x", 90).move(0, -0.3, 2.66),
        box(0.75, 0.26, 0.12, 0.03).move(0, -0.4, 2.38),
    )
    m.add(white, cylinder(0.23, 0.05, 0.01, 36).turn("x", 90).move(0, -0.48, 2.66))
    m.add(gold, torus(0.24, 0.035, 36, 10).turn("x", 90).move(0, -0.52, 2.66))
    m.add(soot, box(0.03, 0.02, 0.17).move(0, -0.54, 2.73), box(0.12, 0.02, 0.03).move(0.05, -0.54, 2.66))
    for x in (-1.3, 1.3):
        m.add(vase, lathe(spline([(0.12, 2.34), (0.22, 2.6), (0.09, 2.88), (0.14, 2.98)], 18), 28).move(x, -0.15))
    return m
