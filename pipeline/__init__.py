"""The offline side: media in, packed shards out. `build.py` is the place to start reading."""
