"""MuonClip's optimizer half: Muon for matrices, AdamW for the rest, on any `nn.Module`.

Update rule and constants: Moonlight, arXiv:2502.16982, sections 2.1-2.2 (Newton-Schulz, update RMS matched to AdamW's,
decoupled weight decay); Kimi K2, arXiv:2507.20534, section 2.1 (MuonClip). The other half, which holds attention logits
down, is `openk2.training.qk_clip`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openk2.training.parallel import ALONE, Ranks, local

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: steep at 0, so that five steps bring every singular value near 1."""
RMS_MATCH = 0.2
"""An orthogonal matrix times 0.2 sqrt(max(rows, columns)) has the RMS of a typical AdamW update."""


def newton_schulz(matrices: Tensor, *, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate the nearest orthogonal matrix U V^T of each matrix in a stack.

    matrices: (..., rows, columns), any number of leading axes; the result has the same shape and the input's dtype.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def _scale(rows: int, columns: int) -> float:
    return RMS_MATCH * max(rows, columns) ** 0.5


def muon_parameters(module: nn.Module) -> Iterable[tuple[str, nn.Parameter, bool]]:
    """(name, parameter, goes to Muon) of every trainable parameter.

    Muon takes matrices and stacks of matrices, except embeddings and the output head (parameters that an
    `nn.Embedding` owns or whose name says `lm_head`), and the factors of adapters (`lora_`): it is their product that
    is a matrix of the model.
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
            yield name, parameter, is_matrix and "lm_head" not in name and "lora_" not in name


class MuonClip(torch.optim.Optimizer):
    """Muon for the matrices of `module` (each one of a stack by itself), AdamW for everything else.

    M <- momentum M + G;  W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(rows, columns)) NS(G + momentum M)

    `fused` says into how many equal matrices, stacked along its rows, a parameter's last two axes are to be taken
    apart first (a fused gate-and-up projection holds 2). Matrices of one shape are orthogonalised in one batch.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        adamw_lr: Callable[[str], float] | float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        newton_schulz_dtype: torch.dtype = torch.bfloat16,
        fused: Callable[[str], int] = lambda name: 2 if name.endswith("gate_up_proj") else 1,
        matrices: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """`adamw_lr`: AdamW's learning rate, or one for each parameter name; None: the same `lr` serves both.
        `matrices`: False leaves them to AdamW too, at `lr`: plain AdamW, to compare with.
        `ranks`: those over which the module's parameters are sharded."""
        by_rate: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, parameter, is_matrix in muon_parameters(module):
            rate = lr if is_matrix or adamw_lr is None else adamw_lr(name) if callable(adamw_lr) else adamw_lr
            by_rate[is_matrix and matrices, rate].append((name, parameter))
        groups: list[dict[str, Any]] = [
            {
                "params": [p for _, p in named],
                "names": [n for n, _ in named],
                "muon": is_muon,
                "lr": rate,
                "base_lr": rate,
            }
            for (is_muon, rate), named in by_rate.items()
        ]
        for group in groups:
            group["fused"] = [fused(name) for name in group["names"]]
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults)
        self.newton_schulz_dtype, self.ranks = newton_schulz_dtype, ranks
        self._squares: list[Tensor] = []
        self._updated = 0

    @property
    def state_bytes(self) -> int:
        """Of the momenta and moments that this process holds: nothing before the first step."""
        values = (local(v) for state in self.state.values() for v in state.values() if isinstance(v, Tensor))
        return sum(value.numel() * value.element_size() for value in values)

    @property
    def update_rms(self) -> float:
        """Root mean square of the last step's Muon updates at a learning rate of 1: near 0.2, as AdamW's.

        0 where nothing goes to Muon.
        """
        return float(torch.stack(self._squares).sum() / self._updated) ** 0.5 if self._squares else 0.0

    def set_lr_scale(self, scale: float) -> None:
        """Set every group's learning rate to `scale` times the one it was made with: for schedules."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._squares, self._updated = [], 0
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
            else:
                self._adamw(group)
        if self.ranks.size > 1 and self._squares:
            sums = torch.stack([torch.stack(self._squares).sum(), self._squares[0].new_tensor(self._updated)])
            self._squares, self._updated = [self.ranks.sum_(sums)[0]], int(sums[1])
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        fused = [f for p, f in zip(group["params"], group["fused"], strict=True) if p.grad is not None]
        parameters = [p for p in group["params"] if p.grad is not None]
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], local(parameter.grad)
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = local(state["momentum"]).mul_(group["momentum"]).add_(gradient)
            updates.append(gradient.add(momentum, alpha=group["momentum"]))
        forms = [(p.shape[-2] // f, p.shape[-1]) for p, f in zip(parameters, fused, strict=True)]
        if self.ranks.size == 1:
            updates = self._orthogonalise(updates, forms)
        else:
            from openk2.training.parallel.owners import on_whole_matrices

            shapes = [p.shape for p in parameters]
            updates = on_whole_matrices(lambda given: self._orthogonalise(given, forms), updates, shapes, self.ranks)
        for parameter, update, form in zip(parameters, updates, forms, strict=True):
            weight = local(parameter).mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.view(weight.shape), alpha=-group["lr"] * _scale(*form))

    def _orthogonalise(self, updates: list[Tensor], forms: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Each update as a stack of matrices of its (rows, columns); those of one form go in one batch."""
        batches: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, form in enumerate(forms):
            batches[form].append(i)
        results = list(updates)
        for form, members in batches.items():
            stacks = [updates[i].view(-1, *form) for i in members]
            batch = newton_schulz(torch.cat(stacks), dtype=self.newton_schulz_dtype)
            self._squares.append((batch.float().norm() * _scale(*form)).square())
            self._updated += batch.numel()
            for i, part in zip(members, batch.split([len(stack) for stack in stacks]), strict=True):
                results[i] = part.reshape(updates[i].shape)
        return results

    def _adamw(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state, weight, gradient = self.state[parameter], local(parameter), local(parameter.grad)
            if not state:
                state["step"] = 0
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            first = local(state["exp_avg"]).lerp_(gradient, 1 - beta1)
            second = local(state["exp_avg_sq"]).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))
