"""Packing to a proven optimum: `columns` (column generation) with its `master` and `pricing`; `fill` (bins full to the last token).

The only room that imports OR-Tools.
"""
