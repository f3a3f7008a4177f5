"""The hand-over of token sets to TRELLIS, which turns them into 3D (specification 7 and 8.3)."""
