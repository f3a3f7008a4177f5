"""Training of the aligner: batches, steps, checkpoints, validation, what is written about them."""
