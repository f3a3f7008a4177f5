"""Torch datasets: shuffled, split over ranks and workers, resumable; over target parts and over image-text tars."""
