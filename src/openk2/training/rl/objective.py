"""What the policy is trained on: the mirror-descent objective of Kimi K1.5 (arXiv:2501.12599, section 2.3.2), which K2
keeps (arXiv:2507.20534, section 3.2).

For K answers y to a prompt x, drawn from the policy as it was (pi_old), with rewards r and their mean as baseline:

    L(x) = 1/K sum over y of (r - mean r - tau log(pi(y|x) / pi_old(y|x)))^2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of a prompt's answers: each reward less their mean."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, answer_N: Tensor, advantages_S: Tensor, weights_S: Tensor, tau: float
) -> Tensor:
    """The weighted sum of the objective over S answers, as a scalar.

    logprobs_N, old_logprobs_N: of all answers' tokens, now and under the policy that answered; answer_N (int64): whose
    token each is. weights_S: 1 / (prompts K) each makes the mean over prompts and answers.

    It is (L - (r - mean r)^2) / (2 tau), which has L's gradient up to that factor and also a limit at tau = 0: the
    policy gradient with the mean as baseline.
    """
    ratio_S = torch.zeros_like(advantages_S).index_add(0, answer_N, logprobs_N - old_logprobs_N)
    return (weights_S * (0.5 * tau * ratio_S.square() - advantages_S * ratio_S)).sum()
