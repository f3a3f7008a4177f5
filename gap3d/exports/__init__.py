"""Ways out of the store: image-text tars, TRELLIS's folders, a dataset folder of the Hugging Face hub."""
