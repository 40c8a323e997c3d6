"""Tables and tars as inputs: what they list, what they say of it, and reading one part of them.

A table (CSV, JSONL, Parquet) names files or holds them, a row each; a tar holds them as members. Both become Sources like
loose files, with a part of a file where they hold it. TFRecord is left out: no kept reader of its examples comes without
TensorFlow.
"""
