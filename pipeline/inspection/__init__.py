"""One sequence of a dataset: `sequence` in words, `image` as an image file, `segment` what both say and show of an example."""
