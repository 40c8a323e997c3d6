"""Token counts that may move: `elastic` chooses those that fill bins exactly, `closing` those of one bin."""
