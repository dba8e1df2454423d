"""The training loop: one model, MuonClip, packed batches, a log, and checkpoints from which it goes on exactly.

It knows nothing of files of conversations or vocabularies: the caller gives it a `Source` and a validation set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.checkpoint import load_config
from openk2.errors import CheckpointError, ConfigError, DivergedError, TrainingError
from openk2.evals.lines import LineFile
from openk2.training.balance import imbalance, update_router_bias_
from openk2.training.budgets import draw_budgets
from openk2.training.data import Conversation
from openk2.training.guide_loss import GuideLoss
from openk2.training.guides import KINDS, find_guides
from openk2.training.identity import check_identity, identity
from openk2.training.init import first_model
from openk2.training.lora import add_adapters_
from openk2.training.muon import MuonClip
from openk2.training.packing import Example, PackedBatch
from openk2.training.parallel import ALONE, Ranks, clip_grad_norm_
from openk2.training.precision import Workshop
from openk2.training.qk_clip import qk_clip_
from openk2.training.recipe import Recipe
from openk2.training.source import Source
from openk2.training.state import STATE_FILE, read_state, write_state
from openk2.training.tracking import trackers
from openk2.training.validate import Validation, validate

if TYPE_CHECKING:
    from openk2.training.parallel.shard import Sharded

LOG_FILE = "log.jsonl"


class Trainer:
    """Holds a run's state: weights, optimizer, and the position (step, tokens) from which the data follow."""

    def __init__(
        self, recipe: Recipe, source: Source, folder: Path, *, device: str = "cpu", ranks: Ranks = ALONE
    ) -> None:
        """`ranks`: the processes that train together, of which each has a trainer. Raises ConfigError when they cannot
        share the recipe."""
        ranks.check(recipe)
        self.recipe, self.source, self.folder, self.device, self.ranks = recipe, source, folder, device, ranks
        self.model = first_model(recipe.model, recipe.init, recipe.seed)
        self.sharded: Sharded | None = None
        if ranks.size > 1:
            from openk2.training.parallel.shard import Sharded

            self.sharded = Sharded(self.model, ranks, recipe.dtype)
        self.model.to(device)
        if recipe.lora is not None:
            _check_same_shape(recipe)
            add_adapters_(self.model, recipe.lora, recipe.seed)
            self.model.to(device)
        self.workshop = Workshop(self.model, recipe.dtype if self.sharded is None else "float32")  # FSDP casts itself
        o = recipe.optimizer
        self.optimizer = MuonClip(
            self.model,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            betas=o.betas,
            adamw_lr=lambda name: (
                o.embedding_lr if "embed_tokens" in name else o.head_lr if "lm_head" in name else o.lr
            ),
            newton_schulz_dtype=getattr(torch, o.newton_schulz_dtype),
            matrices=o.kind == "muonclip",
            ranks=ranks,
        )
        self.step, self.batches, self.tokens, self.seconds = 0, 0, 0, 0.0
        c = recipe.model
        self.expert_load = torch.zeros(c.num_hidden_layers, c.n_routed_experts or 0)
        """(layers, experts): tokens since the last validation that chose each expert."""
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def total_tokens(self) -> int:
        return self.recipe.schedule.total_tokens

    def train_step(self) -> dict[str, Any]:
        """One step: forward and backward of its batches, MuonClip, load balance. Returns the step's record.

        Raises DivergedError when the loss or a gradient is no finite number; the weights are as before the step then.
        """
        started = time.perf_counter()
        recipe = self.recipe
        stage = recipe.stage(self.tokens)
        batches = [self.source.batch(self.batches + i, stage) for i in range(recipe.accumulate)]
        supervised = sum(int(batch.supervised.sum()) for batch in batches)
        max_logits, load = self._observed()
        loss = 0.0
        guides: dict[str, float] = {}
        for batch in (batch.to(self.device) for batch in self.ranks.share(batches)):
            share = int(batch.supervised.sum()) / supervised
            part, found = self._backward(batch, share, max_logits, load)
            loss += part * share
            guides = {kind: guides.get(kind, 0.0) + value * share for kind, value in found.items()}
        loss, guides = self._over_ranks(loss, guides)
        self.ranks.max_(max_logits)
        self.ranks.sum_(load)
        updated = self._update(loss, max_logits, load)
        tokens = sum(len(batch.input_ids) for batch in batches)
        self.step += 1
        self.batches += len(batches)
        self.tokens += tokens
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": loss,
            "supervised": supervised,
            **updated,
            "tokens_per_second": tokens / elapsed,
            **({"guides": {k: round(v, 3) for k, v in guides.items()}} if guides else {}),
        }

    def _observed(self) -> tuple[Tensor, Tensor]:
        """What an update's passes raise: largest attention logits (layers, heads), expert load (layers, experts)."""
        c = self.model.config
        max_logits = torch.full((c.num_hidden_layers, c.num_attention_heads), -torch.inf, device=self.device)
        return max_logits, torch.zeros(c.num_hidden_layers, c.n_routed_experts or 0, device=self.device)

    def _update(self, loss: float, max_logits: Tensor, load: Tensor) -> dict[str, Any]:
        """MuonClip's step by the gradients that were added up, QK-Clip, load balance; their part of the record.

        Raises DivergedError, before anything is changed, when `loss` or a gradient is no finite number.
        """
        recipe, model = self.recipe, self.model
        norm = clip_grad_norm_(model.parameters(), recipe.optimizer.max_grad_norm, self.ranks)
        scale = recipe.schedule.scale(self.tokens)
        self._check_finite(loss, float(norm), scale, float(max_logits.max()))
        self.optimizer.set_lr_scale(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clipped = 0
        if recipe.lora is None:  # both change the model itself
            clipped = qk_clip_(model, max_logits, recipe.optimizer.qk_clip_threshold, self.ranks)
            first, last = recipe.router_bias_rate
            update_router_bias_(model, load, first + (last - first) * min(self.tokens / self.total_tokens, 1.0))
        self.workshop.refresh()
        self.expert_load += load.cpu()
        return {
            "grad_norm": float(norm),
            "lr": recipe.optimizer.lr * scale,
            "lr_scale": scale,
            "update_rms": self.optimizer.update_rms,
            "max_logit": float(max_logits.max()),
            "clipped_heads": clipped,
            "imbalance": imbalance(model, load),
        }

    def _backward(
        self, batch: PackedBatch, share: float, max_logits: Tensor, load: Tensor
    ) -> tuple[float, dict[str, float]]:
        """Add the gradients of a batch that holds `share` of the step's learned tokens; its loss and guides' losses."""
        recipe, worker = self.recipe, self.workshop.worker
        guided = self._guide_loss(batch)
        inputs = batch.forward_batch(
            budgets=draw_budgets(batch, self.model.config.num_experts_per_tok, recipe.reduced_budgets, recipe.seed),
            max_logits=max_logits,
            expert_load=load,
            observe_attention=guided and guided.observe,
            recompute=recipe.recompute,
        )
        hidden = worker(batch.input_ids, inputs)
        rows = batch.supervised.nonzero()[:, 0]
        losses = F.cross_entropy(worker.compute_logits(hidden[rows]), batch.labels[rows], reduction="none")
        loss = losses.mean()
        guides = guided.means() if guided else {}
        weighed = losses @ guided.weigh(batch.supervised, recipe.guides.decision_weight) if guided else loss
        ((weighed + recipe.guides.weight * sum(guides.values())) * share).backward()
        self.workshop.gather()
        return float(loss.detach()), {kind: float(value.detach()) for kind, value in guides.items()}

    def _over_ranks(self, loss: float, guides: dict[str, float]) -> tuple[float, dict[str, float]]:
        if self.ranks.size == 1:
            return loss, guides
        own = [loss, *(guides.get(kind, 0.0) for kind in KINDS)]
        loss, *rest = self.ranks.sum_(torch.tensor(own, dtype=torch.float64, device=self.device)).tolist()
        return loss, {kind: value for kind, value in zip(KINDS, rest, strict=True) if value > 0}

    def _check_finite(self, loss: float, norm: float, scale: float, max_logit: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.optimizer.zero_grad()
        state = self.folder / STATE_FILE
        kept = f"the last state, {state}, is intact" if state.exists() else "no state was written yet"
        raise DivergedError(
            f"step {self.step + 1} at {self.tokens:,} tokens: the loss is {loss:.4g}, the gradient's norm {norm:.4g} "
            f"(learning rate {self.recipe.optimizer.lr * scale:.3g}, largest attention logit {max_logit:.3g}); "
            f"{kept}. Lower optimizer.lr, or look at the data of this step"
        )

    def _guide_loss(self, batch: PackedBatch) -> GuideLoss | None:
        guides = self.recipe.guides
        if guides.weight == 0 or self.tokens >= guides.until_tokens:
            return None
        tokenizer = self.source.template.tokenizer
        found = [find_guides(ids.tolist(), tokenizer) for ids in batch.input_ids.split(batch.lengths)]
        return GuideLoss(found, batch.cu_seqlens, guides.heads)

    def run(
        self,
        held: Sequence[Conversation | Example],
        *,
        max_seconds: float | None = None,
        report: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        """Train to the schedule's end, or until `max_seconds` have passed; validate, save and log on the way.

        `report` is given every record that goes to the log. Of several ranks only the first logs, reports and writes.
        Raises TrainingError when state or log cannot be written, EnvironmentFault for trackers that are not installed.
        """
        if self.ranks.index > 0:
            self._run(held, max_seconds, lambda entry: None)
            return
        with (
            trackers(self.recipe, self.folder, self.tokens) as tracked,
            LineFile(self.folder / LOG_FILE) as log,
        ):

            def record(entry: dict[str, Any]) -> None:
                try:
                    log.write(entry)
                except OSError as error:
                    raise TrainingError(
                        f"cannot write {self.folder / LOG_FILE}: {error.strerror or error}; the last state is intact"
                    ) from None
                for tracker in tracked:
                    tracker.record(entry)
                report(entry)

            self._run(held, max_seconds, record)

    def _run(
        self,
        held: Sequence[Conversation | Example],
        max_seconds: float | None,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        started = time.perf_counter()
        recipe = self.recipe
        while self.tokens < self.total_tokens:
            before = self.tokens
            record(self.train_step())
            due = crossed(before, self.tokens, recipe.validate_every_tokens) or self.tokens >= self.total_tokens
            if held and due:
                record(self._validation_record(validate(self.workshop.worker, self.source.template, held)))
            if crossed(before, self.tokens, recipe.save_every_tokens):
                self.save()
            if max_seconds is not None and self.ranks.any(time.perf_counter() - started > max_seconds):
                break
        self.save()

    def _validation_record(self, result: Validation) -> dict[str, Any]:
        load = self.expert_load.long().tolist()
        self.expert_load.zero_()
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "held_loss": result.loss,
            "held_token_accuracy": result.token_accuracy,
            "held_exact_calls": result.exact_calls,
            "held_exact_turns": {k: f"{a}/{b}" for k, (a, b) in result.exact_turns.items()},
            "expert_load": load,
        }

    def save(self) -> None:
        """Write the whole state (`state.py`). Raises TrainingError when it cannot be written."""
        lora = self.recipe.lora
        kept = {name for name, p in self.model.named_parameters() if p.requires_grad}
        weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        if self.sharded is not None:
            weights, optimizer = self.sharded.whole(weights, optimizer)
            if self.ranks.index > 0:
                return
        state = {
            "config": self.recipe.model.to_hf(),
            "recipe": identity(self.recipe),
            "model": weights if lora is None else {name: weights[name] for name in weights if name in kept},
            "lora": None if lora is None else asdict(lora),
            "optimizer": optimizer,
            "step": self.step,
            "batches": self.batches,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "data": dict(self.source.position()),
        }
        write_state(state, self.folder, keep=self.recipe.keep)

    def resume(self) -> bool:
        """Go on from the folder's state, if there is one.

        Raises CheckpointError when it is unreadable, of another architecture, of other data, or of a recipe that
        differs in what a run may not change (`identity.py`).
        """
        state = read_state(self.folder, "cpu" if self.sharded else self.device, mapped=self.sharded is not None)
        if state is None:
            return False
        path = self.folder / STATE_FILE
        if state["config"] != self.recipe.model.to_hf():
            raise CheckpointError(f"{path} is of another architecture than the recipe's; choose another --output")
        lora = self.recipe.lora
        if state.get("lora") != (None if lora is None else asdict(lora)):
            raise CheckpointError(f"{path} is of another [lora] section than the recipe's; choose another --output")
        check_identity(state.get("recipe", {}), self.recipe, str(path))
        self.source.seek(state.get("data", {}))
        weights, optimizer = state["model"], _by_name(state["optimizer"], self.optimizer.state_dict())
        if self.sharded is not None:
            weights, optimizer = self.sharded.shares(weights, optimizer)
        self.model.load_state_dict(weights, strict=lora is None)
        self.optimizer.load_state_dict(optimizer)
        self.workshop.refresh()
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.batches = state.get("batches", self.step)  # states from before gradient accumulation have none
        return True


def _by_name(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of each parameter in the present groups: the recipe's rates, which groups follow, may have been
    changed for this stretch of the run."""
    states = {
        name: saved["state"][index]
        for group in saved["param_groups"]
        for name, index in zip(group["names"], group["params"], strict=True)
        if index in saved["state"]
    }
    groups = present["param_groups"]
    places = {name: index for group in groups for name, index in zip(group["names"], group["params"], strict=True)}
    return {"state": {places[name]: state for name, state in states.items()}, "param_groups": groups}


def _check_same_shape(recipe: Recipe) -> None:
    """An adapter belongs to a checkpoint as it is, not to a grown one."""
    theirs, ours = load_config(recipe.init).to_hf(), recipe.model.to_hf()
    differing = sorted(k for k in theirs if theirs[k] != ours.get(k) and k != "torch_dtype")
    if differing:
        raise ConfigError(
            f"[lora]: {recipe.init} differs from the recipe's model in {', '.join(differing)}; leave [model] out",
            param="model",
        )


def crossed(before: int, after: int, interval: int) -> bool:
    """True when a multiple of `interval` lies in (before, after]."""
    return before // interval != after // interval
