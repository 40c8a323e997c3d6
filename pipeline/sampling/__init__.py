"""What each view of an example becomes, before any pixel is touched: size, grid, patch size, kept tokens, crop and flip.

Pure functions of (seed, example_id, view) on integers and token counts; the stage `sample` strings them together.
"""
