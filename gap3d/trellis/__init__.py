"""The hand-over of token sets to TRELLIS, which turns them into 3D (docs/method.md 7 and 8.3)."""
