"""How well a dataset is packed.

`scan` reads it, over `statistics`, `sizes` and `arrangement`; `text`, `html` and `charts` show it, `gallery` a few
sequences themselves (`choice`: which); `prediction` shows what `plan` predicts.
"""
