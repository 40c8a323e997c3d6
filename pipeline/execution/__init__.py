"""What runs a build: with `storage` the only room that imports Beam.

In order: `launch` (from what was asked to a finished dataset), `resume` (what a build that goes on takes over), `folder`
(the output), `runner` (where it runs; `remembered` is what Beam then works out once) and `graph` (one line a stage) over
`transforms`; `workers` (processes of this machine; `worker` is their side), the `sandbox` for decoders (`sandbox_process`
is its side) and `parent`, with which they all end; `stage`, `counts` and `progress` for who waits.
"""
