"""How well a dataset is packed.

`scan` reads it, over `examples` (`aspects`), `sizes`, `arrangement` and `statistics`; `times` says how long the build took. `text`,
over `words`, shows it in a terminal; `page` as a page (`html`), with the charts of `charted` (`charts` makes one, `figures` writes them),
sequences of `gallery` (`choice`: which) and images of `rejected`. `prediction` shows what `plan` predicts, `whatif` what it compares.
"""
