"""Images to RGB at a size: `decode` is the way in.

Behind it: `damage` (what decoders pass over), `jpeg` and `jpeg_header`, `heif`, `animated`, `colour` (to sRGB).
"""
