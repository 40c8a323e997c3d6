"""How well a dataset is packed.

`scan` reads it, over `statistics`, `sizes` and `arrangement`; `text`, `html` and `charts` show it; `prediction` shows what
`plan` predicts.
"""
