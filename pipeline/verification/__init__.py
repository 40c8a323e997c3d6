"""Reads a dataset again and checks every rule: `dataset`, and `rows` for one row."""
