"""Files here and in object stores.

`files` and `listing` are the way in; `remote` is the side of the stores (`s3`, `gcs`, and `others` through Beam's filesystems), where `spans`
splits what is very large; `reading` reads one input and separates a bad file from storage that is gone.
"""
