"""How fast the engine is on this machine, beside what the machine could do."""

from openk2.bench.cases import Case, make_cases
from openk2.bench.limits import MachineLimits, measure_limits
from openk2.bench.run import Bench, CaseResult, run

__all__ = ["Bench", "Case", "CaseResult", "MachineLimits", "make_cases", "measure_limits", "run"]
