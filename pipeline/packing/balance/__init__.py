"""Bins in steps of near-equal cost: `balance`, by way of `swap`; `mixing` measures how well examples are mixed."""
