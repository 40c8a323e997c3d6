"""Packing of examples into bins: token counts in, bin numbers out, integers only.

One call, `pack`, its two independent judges, `check_packing` and `check_certificate`, and `bound_of_histogram` for what
no packing of many groups together can beat. In order: `instance` (the checked question), `bounds` (in closed form),
`greedy` (best-fit decreasing, folding), `left` and `largest_first` (bins filled exactly), `exact` (proven optima), `slots` (which
example stands where), `result` (the answer), `certificate` (the proof), `pack` (who is asked when). Beside them:
`counts` (which of several counts each example gets), `balance` (bins in steps of near-equal cost) and `streaming` (bins of
an unbounded stream, window by window).
"""

from patchpack.pipeline.packing.certificate import check_certificate
from patchpack.pipeline.packing.pack import bound_of_histogram, pack
from patchpack.pipeline.packing.result import Certificate, Packing, check_packing
from patchpack.pipeline.packing.streaming import pack_stream

__all__ = ["Certificate", "Packing", "bound_of_histogram", "check_certificate", "check_packing", "pack", "pack_stream"]
