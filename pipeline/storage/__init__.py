"""Files here and in object stores.

`files` is the way in, `remote` the side of the stores (through Beam's filesystems), `reading` reads one input and separates
a bad file from storage that is gone.
"""
