"""The public guide's numbers, checked: what it says, what the planner computes or a source states, and the verdict."""

from functools import cache

from openk2.planner.claims.claim import Call, CheckedClaim, Claim, Verdict, check_claim, judge, read_claims
from openk2.planner.claims.commands import COMMAND_QUANTITIES
from openk2.planner.claims.deployment import DEPLOYMENT_QUANTITIES
from openk2.planner.claims.quantity import MODEL_QUANTITIES, Quantity

__all__ = ["QUANTITIES", "Call", "CheckedClaim", "Claim", "Quantity", "Verdict", "check_claims", "judge", "read_claims"]

QUANTITIES = MODEL_QUANTITIES | DEPLOYMENT_QUANTITIES | COMMAND_QUANTITIES


@cache
def check_claims() -> tuple[CheckedClaim, ...]:
    """Every claim with its value and verdict, in the order of the page."""
    return tuple(check_claim(claim, QUANTITIES) for claim in read_claims())
