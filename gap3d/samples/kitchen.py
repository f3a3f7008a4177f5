"""A teapot, an ice cream, a hamburger and a doughnut."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from gap3d.samples.model import Material, Model
from gap3d.samples.shapes import Shape, ball, cylinder, join, lathe, sheet, spline, torus, tube


def teapot() -> Model:
    """A round red teapot with white dots."""
    red, white, gold = (
        Material("red", "c8141e", 0.25),
        Material("white", "f4efe2", 0.35),
        Material("gold", "e0a020", 0.3),
    )
    m = Model()
    profile = spline([(0.62, 0.0), (0.66, 0.06), (0.9, 0.3), (1.05, 0.68), (0.92, 1.1), (0.6, 1.38)], 28)
    m.add(red, lathe([(0, 0), *profile], 64))
    m.add(gold, torus(0.6, 0.055, 64).move(z=1.38), torus(0.63, 0.06, 64).move(z=0.02))
    lid = spline([(0.57, 1.38), (0.5, 1.52), (0.28, 1.64), (0.0, 1.68)], 18)
    m.add(red, lathe(lid, 64))
    m.add(gold, ball(0.15, 28).move(z=1.82), cylinder(0.08, 0.1).move(z=1.66))
    spout = spline([(0.8, 0, 0.42), (1.15, 0, 0.5), (1.42, 0, 0.85), (1.58, 0, 1.22), (1.85, 0, 1.42)], 40)
    m.add(red, tube(spout, np.linspace(0.34, 0.13, 40), 28, up=(0, 1, 0)))
    m.add(gold, torus(0.13, 0.04, 32, 12).turn("y", 50).move(1.85, 0, 1.42))
    handle = spline(
        [(-0.8, 0, 1.15), (-1.25, 0, 1.4), (-1.68, 0, 1.2), (-1.66, 0, 0.7), (-1.3, 0, 0.38), (-0.9, 0, 0.36)], 48
    )
    m.add(red, tube(handle, 0.115, 20, up=(0, 1, 0)))
    for row, (z, radius, tilt, count) in enumerate(
        [(0.42, 0.965, -25, 11), (0.72, 1.045, 2, 12), (1.02, 0.955, 32, 11)]
    ):
        dot = ball(0.115, 14).scale(0.25, 1, 1).turn("y", -tilt).move(radius, 0, z)
        m.add(white, dot.around(count, 15.0 + 16 * row))
    return m


def _waffle() -> Image.Image:
    """Diagonal waffle grooves."""
    image = Image.new("RGB", (512, 256), (232, 160, 72))
    draw = ImageDraw.Draw(image)
    for i in range(-16, 32):
        for lean in (-1, 1):
            x = i * 32 + (256 if lean < 0 else 0)
            draw.line([(x, 0), (x + lean * 256, 256)], fill=(150, 84, 26), width=8)
            draw.line([(x + 5, 0), (x + 5 + lean * 256, 256)], fill=(248, 196, 112), width=3)
    return image


def _scoop(radius: float, seed: int) -> Shape:
    """A scoop of ice cream with a ruffled skirt, its middle at the origin."""
    waves = np.random.default_rng(seed).uniform(0, 6, 3)

    def ruffle(v: np.ndarray) -> np.ndarray:
        angle, low = np.arctan2(v[:, 1], v[:, 0]), np.clip((-v[:, 2] / radius + 0.1) * 1.3, 0, 1)
        wave = np.sin(7 * angle + waves[0]) + 0.6 * np.sin(11 * angle + waves[1]) + 0.4 * np.sin(4 * angle + waves[2])
        v[:, :2] *= (1 + low * (0.06 + 0.055 * wave))[:, None]
        return v

    angle = np.linspace(-0.55, np.pi / 2, 26)
    dome = np.stack([np.cos(angle), np.sin(angle)], 1) * radius
    skirt = [(0.0, -0.5), (0.75, -0.56), (0.98, -0.58), (1.07, -0.5), (1.06, -0.38), (0.98, -0.28)]
    return lathe([*(np.array(skirt) * radius), *dome[5:-1], (0.0, radius)], 96).bend(ruffle)


def ice_cream() -> Model:
    """Two scoops in a waffle cone, with a cherry and a wafer."""
    waffle = Material("waffle", "e8a048", 0.7, texture=_waffle)
    pink, mint = Material("strawberry", "f0648c", 0.45), Material("pistachio", "86cf6a", 0.45)
    cherry, stem = Material("cherry", "c00a1a", 0.2), Material("stem", "5f8a2a")
    wafer, sauce = Material("wafer", "c9873c", 0.7), Material("sauce", "6a3416", 0.25)
    m = Model()
    m.add(
        waffle, lathe([(0.02, 0.0), (0.45, 1.2), (0.9, 2.3), (0.97, 2.34), (0.97, 2.46), (0.86, 2.46), (0.8, 2.3)], 64)
    )
    m.add(pink, _scoop(0.95, 3).move(z=2.92))
    m.add(mint, _scoop(0.8, 8).move(z=4.0))

    def drip(v: np.ndarray) -> np.ndarray:
        angle = np.arctan2(v[:, 1], v[:, 0])
        reach = 0.62 + 0.16 * np.sin(5 * angle) + 0.12 * np.sin(8 * angle + 1)
        t = np.hypot(v[:, 0], v[:, 1]) * reach * 1.5
        length = np.where(v[:, 2] > 0.5, 0.86, 0.78)
        return np.stack([length * np.sin(t) * np.cos(angle), length * np.sin(t) * np.sin(angle), length * np.cos(t)], 1)

    rings = [(r, 1.0) for r in np.linspace(0, 0.94, 14)] + [(1.0, 0.9), (1.0, 0.0)]
    m.add(sauce, lathe(rings, 80).bend(drip).move(z=4.0))
    m.add(cherry, ball(0.24, 28).move(z=5.02))
    m.add(stem, tube(spline([(0, 0, 5.2), (0.05, 0, 5.45), (0.22, 0, 5.65)], 10), 0.03, 8))
    m.add(wafer, tube([(0, 0, -0.7), (0, 0, 0.7)], 0.13, 20).turn("y", 24).move(0.72, 0.1, 4.75))
    return m


def hamburger() -> Model:
    """A burger with lettuce, tomato, cheese and a seeded bun."""
    bun, crumb = Material("bun", "d98a32", 0.5), Material("crumb", "f3d9a0", 0.7)
    meat, leaf = Material("meat", "6e3517", 0.7), Material("lettuce", "62c22c", 0.5)
    cheese, tomato, seed = (
        Material("cheese", "ffb81c", 0.4),
        Material("tomato", "d8231a", 0.3),
        Material("seed", "fff0c8"),
    )
    m = Model()
    m.add(bun, lathe(spline([(0, 0), (1.0, 0.0), (1.26, 0.1), (1.32, 0.3), (1.24, 0.44), (1.15, 0.46)], 24), 72))
    m.add(crumb, cylinder(1.2, 0.06, 0.02, 64).move(z=0.42))

    def lumpy(v: np.ndarray) -> np.ndarray:
        angle = np.arctan2(v[:, 1], v[:, 0])
        v[:, :2] *= (1 + 0.018 * np.sin(17 * angle + 6 * v[:, 2]) + 0.014 * np.sin(29 * angle))[:, None]
        return v

    m.add(meat, cylinder(1.36, 0.38, 0.14, 120).bend(lumpy).move(z=0.47))
    grid = np.linspace(-1.18, 1.18, 25)
    x, y = np.meshgrid(grid, grid)
    over = np.maximum(np.hypot(x, y) - 1.22, 0)
    sag = np.stack([x * (1 - 0.22 * over), y * (1 - 0.22 * over), 0.9 - 0.95 * over], -1)
    slab = join([sheet(sag), sheet(sag - [0, 0, 0.05])])
    m.add(cheese, slab.turn("z", 38))
    for i in range(4):
        disc = cylinder(0.62, 0.13, 0.05, 40).turn("z", 20.0).move(0.66, 0, 0.9)
        m.add(tomato, disc.turn("z", 45.0 + 90 * i).move(z=0.015 * i))
    angle, r = np.meshgrid(np.linspace(0, 2 * np.pi, 181), np.linspace(0.3, 1, 9))
    wave = np.sin(13 * angle) + 0.5 * np.sin(21 * angle + 1)
    radius = r * (1.42 + 0.05 * np.sin(5 * angle))
    frill = np.stack([radius * np.cos(angle), radius * np.sin(angle), 1.1 + (0.11 * wave - 0.05) * r**4], -1)
    m.add(leaf, sheet(frill), sheet(frill - [0, 0, 0.03]))
    top = spline([(1.18, 1.17), (1.36, 1.24), (1.4, 1.4), (1.22, 1.78), (0.75, 2.1), (0.0, 2.22)], 32)
    m.add(bun, lathe([(0, 1.17), *top], 72))
    for i in range(46):
        height = 0.975 - 0.6 * i / 46
        flat, turn = np.sqrt(1 - height**2), i * 137.508
        grain = ball(0.075, 12).scale(1.5, 0.85, 0.5).turn("z", 77.0 * i)
        grain = grain.turn("y", np.degrees(np.arctan2(flat * 0.78, height * 1.3)))
        m.add(seed, grain.move(1.36 * flat, 0, 1.3 + 0.94 * height).turn("z", turn))
    return m


def donut() -> Model:
    """A doughnut with pink icing and sprinkles, tipped towards the viewer."""
    dough, icing = Material("dough", "d59a4c", 0.65), Material("icing", "f2559a", 0.25)
    colors = [("yellow", "ffd21e"), ("blue", "1e8cff"), ("green", "38c838"), ("white", "ffffff"), ("orange", "ff7a14")]
    m = Model()
    m.add(dough, torus(1.0, 0.5, 72, 32).scale(1, 1, 0.9))
    u = np.linspace(0, 2 * np.pi, 145)
    outer = 0.42 + 0.18 * np.sin(9 * u) + 0.1 * np.sin(5 * u + 2)
    inner = np.pi + 0.35 + 0.12 * np.sin(6 * u)
    rows = []
    for t, rise in [
        (0.0, 0.49),
        (0.0, 0.53),
        *[(t, 0.56) for t in np.linspace(0.03, 0.97, 26)],
        (1.0, 0.53),
        (1.0, 0.49),
    ]:
        v = outer + (inner - outer) * t
        radius = 1.0 + rise * np.cos(v)
        rows.append(np.stack([radius * np.cos(u), radius * np.sin(u), 0.9 * rise * np.sin(v)], 1))
    m.add(icing, sheet(np.array(rows)))
    sprinkles: list[list[Shape]] = [[] for _ in colors]
    rng = np.random.default_rng(5)
    stick = tube([(-0.075, 0, 0), (-0.06, 0, 0), (0.06, 0, 0), (0.075, 0, 0)], [0.018, 0.034, 0.034, 0.018], 8)
    for i in range(110):
        around, across = i * 137.508, np.degrees(rng.uniform(0.75, 2.6))
        piece = stick.turn("z", float(rng.uniform(0, 180))).move(z=0.575).turn("y", 90 - across)
        sprinkles[i % 5].append(piece.scale(1, 1, 0.92).move(x=1.0).turn("z", around))
    for (name, color), pieces in zip(colors, sprinkles, strict=True):
        m.add(Material(name, color, 0.4), *pieces)
    return m.place(lambda s: s.turn("x", 22))
