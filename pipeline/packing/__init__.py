"""Packing of examples into bins: token counts in, bin numbers out, integers only.

One call, `pack`, its two independent judges, `check_packing` and `check_certificate`, and `bound_of_histogram` for what
no packing of many groups together can beat. The rooms behind them: `instance` (the checked question), `bounds` (in
closed form), `greedy` (best-fit decreasing, folding), `fill` (bins full to the last token), `columns` (column
generation, with `master` and `pricing`; the only importer of ortools), `slots` (which example stands where), `result`
(the answer), `certificate` (the proof), `engine` (who is asked when). Beside them: `elastic` (sizes that fill bins
exactly), `balance` and its `exchange` (bins in groups of near-equal cost), `mixing` (how well examples are mixed).
"""

from pipeline.packing.certificate import check_certificate
from pipeline.packing.engine import bound_of_histogram, pack
from pipeline.packing.result import Certificate, Packing, check_packing

__all__ = ["Certificate", "Packing", "bound_of_histogram", "check_certificate", "check_packing", "pack"]
