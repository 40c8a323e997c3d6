"""Online half of patchpack: reads packed shards and trains the field's models on them (docs/trainer.md).

Imports schemas and torch; never the pipeline, never Beam. `data` and `mixed` (shards -> fixed-shape batches); `attention`, `embed`,
`positions`, `pooling`, `dropping`, `transformer`, `vit` (parts of a model, and the model), `models` (by name); `losses`, `optimisation`,
`parallel`, `checkpoint`, `metrics`, `runlog`, `train`, `evaluate`; `config`, `cli`.
"""
