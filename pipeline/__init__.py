"""The offline side: media in, a dataset of packed shards out.

In the order that data passes: `stages` (list, probe, dedupe, sample, group, plan, write, finish: one file a stage), which
use `media` (bytes to frames to tokens), `packing` (token counts to bins) and `storage` (local files and object stores);
`execution` runs them (the Beam graph, the launcher, workers). Beside them, for what is finished: `report`, `inspection`,
`comparison`, `verification`. `config` holds every option of `build` and `plan`, `demo` draws the sample media of the first run.
"""
