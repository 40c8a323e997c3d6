"""Videos to clips of frames at a size: `timeline` while planning, `decode` while writing.

`container` opens files (`boxes`: MP4s that claim too much; `truncation`: files that end early), `clips` chooses frames,
`random_access` where decoding may begin, `frame` turns one decoded frame into RGB.
"""
