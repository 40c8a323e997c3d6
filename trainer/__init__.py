"""Online half of patchpack: reads packed shards and trains a small NaViT on them.

Imports schemas and torch; never the pipeline, never Beam. `data` (shards -> fixed-shape batches),
`attention`, `embed`, `vit` (the model), `losses`, `checkpoint`, `train`, `evaluate`, `config`, `cli`.
"""
