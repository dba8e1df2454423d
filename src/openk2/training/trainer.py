"""The training loop: one model, MuonClip, packed batches, a log, and checkpoints from which it goes on exactly.

It knows nothing of files of conversations or vocabularies: the caller gives it a `BatchSource` and a validation set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from openk2.errors import CheckpointError
from openk2.training.balance import imbalance, update_router_bias_
from openk2.training.data import Conversation
from openk2.training.guide_loss import GuideLoss
from openk2.training.guides import find_guides
from openk2.training.init import first_model
from openk2.training.muon import MuonClip
from openk2.training.packing import PackedBatch
from openk2.training.qk_clip import qk_clip_
from openk2.training.recipe import Recipe
from openk2.training.source import BatchSource
from openk2.training.validate import Validation, validate

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


class Trainer:
    """Holds a run's state: weights, optimizer, and the position (step, tokens) from which the data follow."""

    def __init__(self, recipe: Recipe, source: BatchSource, folder: Path, *, device: str = "cpu") -> None:
        self.recipe, self.source, self.folder, self.device = recipe, source, folder, device
        self.model = first_model(recipe.model, recipe.init, recipe.seed).to(device)
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
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def total_tokens(self) -> int:
        return self.recipe.schedule.total_tokens

    def train_step(self) -> dict[str, Any]:
        """One batch: forward, backward, MuonClip, load balance. Returns the step's record."""
        started = time.perf_counter()
        recipe, model = self.recipe, self.model
        c = model.config
        batch = self.source.batch(self.step, recipe.stage(self.tokens)).to(self.device)
        max_logits = torch.full((c.num_hidden_layers, c.num_attention_heads), -torch.inf, device=self.device)
        load = torch.zeros(c.num_hidden_layers, c.n_routed_experts or 0, device=self.device)
        guided = self._guide_loss(batch)
        observe = guided and guided.observe
        inputs = batch.forward_batch(max_logits=max_logits, expert_load=load, observe_attention=observe)
        hidden = model(batch.input_ids, inputs)
        rows = batch.supervised.nonzero()[:, 0]
        losses = F.cross_entropy(model.compute_logits(hidden[rows]), batch.labels[rows], reduction="none")
        loss = losses.mean()
        guides = guided.means() if guided else {}
        weighed = losses @ guided.weigh(batch.supervised, recipe.guides.decision_weight) if guided else loss
        (weighed + recipe.guides.weight * sum(guides.values())).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.max_grad_norm)
        scale = recipe.schedule.scale(self.tokens)
        self.optimizer.set_lr_scale(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clipped = qk_clip_(model, max_logits, recipe.optimizer.qk_clip_threshold)
        first, last = recipe.router_bias_rate
        update_router_bias_(model, load, first + (last - first) * min(self.tokens / self.total_tokens, 1.0))
        self.step += 1
        self.tokens += len(batch.input_ids)
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": float(loss.detach()),
            "supervised": len(rows),
            "grad_norm": float(norm),
            "lr_scale": scale,
            "max_logit": float(max_logits.max()),
            "clipped_heads": clipped,
            "imbalance": imbalance(model, load),
            "tokens_per_second": len(batch.input_ids) / elapsed,
            **({"guides": {k: round(float(v.detach()), 3) for k, v in guides.items()}} if guides else {}),
        }

    def _guide_loss(self, batch: PackedBatch) -> GuideLoss | None:
        guides = self.recipe.guides
        if guides.weight == 0 or self.tokens >= guides.until_tokens:
            return None
        tokenizer = self.source.template.tokenizer
        found = [find_guides(ids.tolist(), tokenizer) for ids in batch.input_ids.split(batch.lengths)]
        return GuideLoss(found, batch.cu_seqlens, guides.heads)

    def run(
        self,
        held: Sequence[Conversation],
        *,
        max_seconds: float | None = None,
        report: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        """Train to the schedule's end, or until `max_seconds` have passed; validate, save and log on the way.

        `report` is given every record that goes to the log.
        """
        started = time.perf_counter()
        recipe = self.recipe
        with (self.folder / LOG_FILE).open("a") as log:

            def record(entry: dict[str, Any]) -> None:
                log.write(json.dumps(entry) + "\n")
                log.flush()
                report(entry)

            while self.tokens < self.total_tokens:
                before = self.tokens
                record(self.train_step())
                if crossed(before, self.tokens, recipe.validate_every_tokens) or self.tokens >= self.total_tokens:
                    record(self._validation_record(validate(self.model, self.source.template, held)))
                if crossed(before, self.tokens, recipe.save_every_tokens):
                    self.save()
                if max_seconds is not None and time.perf_counter() - started > max_seconds:
                    break
        self.save()

    def _validation_record(self, result: Validation) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "held_loss": result.loss,
            "held_token_accuracy": result.token_accuracy,
            "held_exact_calls": result.exact_calls,
            "held_exact_turns": {k: f"{a}/{b}" for k, (a, b) in result.exact_turns.items()},
        }

    def save(self) -> None:
        """Write the whole state beside the old one and rename it: a cut at any moment leaves a good file."""
        state = {
            "config": self.recipe.model.to_hf(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        partial = self.folder / (STATE_FILE + ".partial")
        torch.save(state, partial)
        partial.replace(self.folder / STATE_FILE)

    def resume(self) -> bool:
        """Go on from the folder's state, if there is one.

        Raises CheckpointError when it is unreadable or of another architecture.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove it to start anew") from None
        if state["config"] != self.recipe.model.to_hf():
            raise CheckpointError(f"{path} is of another architecture than the recipe's; choose another --output")
        self.model.load_state_dict(state["model"])
        rates = [group["base_lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["base_lr"] = rate  # the recipe's, which may have been changed for this stretch of the run
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        return True


def crossed(before: int, after: int, interval: int) -> bool:
    """True when a multiple of `interval` lies in (before, after]."""
    return before // interval != after // interval
