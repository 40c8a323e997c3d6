"""Packing of examples into bins: token counts in, bin numbers out, integers only.

One call, `pack`, its two independent judges, `check_packing` and `check_certificate`, and `bound_of_histogram` for what
no packing of many groups together can beat. In order: `instance` (the checked question), `bounds` (in closed form),
`greedy` (best-fit decreasing, folding), `largest_first` (bins filled exactly), `exact` (proven optima), `slots` (which
example stands where), `result` (the answer), `certificate` (the proof), `pack` (who is asked when). Beside them:
`counts` (sizes that fill bins exactly), `balance` (bins in groups of near-equal cost) and `streaming` (bins of an
unbounded stream).
"""

from patchpack.pipeline.packing.certificate import check_certificate
from patchpack.pipeline.packing.pack import bound_of_histogram, pack
from patchpack.pipeline.packing.result import Certificate, Packing, check_packing

__all__ = ["Certificate", "Packing", "bound_of_histogram", "check_certificate", "check_packing", "pack"]
