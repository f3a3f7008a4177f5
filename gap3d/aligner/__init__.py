"""The aligner: from a text to the DINOv2 tokens of an image (specification 4 to 7)."""
