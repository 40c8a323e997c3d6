"""Packing of examples into bins: token counts in, bin numbers out, integers only.

One call, `pack`, and its independent judge, `check_packing`. The rooms behind them: `instance`
(the checked question), `bounds` (what no packing can beat), `greedy` (best-fit decreasing),
`exact` (CP-SAT; the only importer of ortools), `result` (the answer), `engine` (who is asked when).
"""

from pipeline.packing.engine import pack
from pipeline.packing.result import Packing, check_packing

__all__ = ["Packing", "check_packing", "pack"]
