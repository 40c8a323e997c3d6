"""One sequence of a dataset: `sequence` in words, `image` as an image file."""
