"""Picture files, good and hostile."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array, mode=None):
    image = Image.fromarray(array)
    return saved(image.convert(mode) if mode else image, "PNG")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, depth=8, colour=6):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png_of(width, height, rows, depth=8, colour=6, extra=b""):
    """A PNG of raw rows, each with its filter byte."""
    return png_header(width, height, depth, colour) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp_of(kind, body):
    """A WebP of one chunk."""
    content = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(content)) + content
