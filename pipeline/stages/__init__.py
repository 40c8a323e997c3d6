"""The stages of a build, one file each, as functions that work without Beam.

In order: `list` (which files are there), `probe` (headers), `dedupe`, `sample` (resolution, grid, tokens), `group` and
`plan` (which example goes to which sequence), `write` (pixels to shards), `finish` (tables, report, manifest). What flows
between them is in `records`; `labels` numbers classes.
"""
