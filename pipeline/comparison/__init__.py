"""How two datasets differ: `differences` compares them, `text` and `html` show it."""
