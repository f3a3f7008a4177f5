"""The aligner: from a text to the DINOv2 tokens of an image (docs/method.md 4 to 7)."""
