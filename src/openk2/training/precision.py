"""Mixed precision: a bfloat16 copy of the model computes, float32 weights are what is trained (Micikevicius et al.,
arXiv:1710.03740).
"""

from __future__ import annotations

import copy

import torch

from openk2.models import K2Model


class Workshop:
    """The model that passes run on, and the one that the optimizer, QK-Clip and the router's balance change.

    In float32 they are one. In bfloat16, gradients of every backward pass are added up in float32.
    """

    def __init__(self, model: K2Model, dtype: str) -> None:
        self.masters = self.worker = model
        if dtype == "float32":
            return
        self.worker = copy.deepcopy(model).to(getattr(torch, dtype))
        for (_, master), (_, work) in self._pairs():
            if not master.requires_grad and work.dtype != master.dtype:
                master.data = work.data  # frozen: one copy is enough

    def _pairs(self):  # type: ignore[no-untyped-def]
        return zip(self.masters.named_parameters(), self.worker.named_parameters(), strict=True)

    def gather(self) -> None:
        """After a backward pass: move its gradients to the masters."""
        if self.worker is self.masters:
            return
        for (_, master), (_, work) in self._pairs():
            if work.grad is not None:
                master.grad = work.grad.float() if master.grad is None else master.grad.add_(work.grad)
                work.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """After the weights have changed: round them anew."""
        if self.worker is self.masters:
            return
        for (_, master), (_, work) in self._pairs():
            if work.data_ptr() != master.data_ptr():
                work.copy_(master)
