"""How far quantised weights move k2-nano: KL divergence and agreement on held-out conversations.

    python benchmarks/quantization_kl.py [--n N] [--formats bf16 int8 int4] [--json FILE]

The answers that the evaluation expects go through the model after their prompts; compared is the distribution of each
of their tokens, the plain float32 model's (P) with the quantised one's (Q): KL(P || Q) in nats, and how often the
likeliest token is the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from openk2 import assets
from openk2.chat.template import ChatTemplate
from openk2.checkpoint import Quantization, load_model
from openk2.models import ForwardBatch, K2Model
from openk2.tokenizer import Tokenizer
from openk2.training.data import held_cases

KINDS = ("single", "choice", "parallel_same", "parallel_different", "chain", "missing", "no_fit", "builtin")


def sequences(folder: Path, n: int) -> list[tuple[list[int], int]]:
    """Token ids of each conversation, and how many of them are the prompt."""
    template = ChatTemplate.from_folder(Tokenizer.from_folder(folder), folder)
    found = []
    for kind in KINDS:
        for tools, messages, expected in held_cases(0, n, kind):
            prompt = template.render(messages, tools)
            whole = template.render([*messages, expected], tools, add_generation_prompt=False)
            assert whole[: len(prompt)] == prompt
            found.append((whole, len(prompt)))
    return found


@torch.inference_mode()
def log_probabilities(model: K2Model, ids: list[int], prompt: int) -> Tensor:
    """Of every token after the prompt, before it is known: (tokens, vocab)."""
    hidden = model(torch.tensor(ids), ForwardBatch.packed([len(ids)]))
    return model.compute_logits(hidden[prompt - 1 : -1]).log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=25, help=f"conversations of each of {len(KINDS)} kinds")
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8", "int4", "int4,attention=int8,head=int8"])
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    folder = assets.path("k2-nano")
    plain = load_model(folder, dtype=torch.float32)
    quantised = {text: load_model(folder, quantization=Quantization.parse(text)) for text in arguments.formats}
    divergences: dict[str, list[Tensor]] = {text: [] for text in quantised}
    same: dict[str, list[Tensor]] = {text: [] for text in quantised}
    for ids, prompt in sequences(folder, arguments.n):
        p = log_probabilities(plain, ids, prompt)
        for text, model in quantised.items():
            q = log_probabilities(model, ids, prompt)
            divergences[text].append((p.exp() * (p - q)).sum(-1))
            same[text].append(p.argmax(-1) == q.argmax(-1))
    results = {}
    print("| format | tokens | mean KL | 99% KL | largest KL | same likeliest token |\n|---|---|---|---|---|---|")
    for text in quantised:
        kl, agree = torch.cat(divergences[text]), torch.cat(same[text]).float().mean().item()
        figures = {"mean": kl.mean().item(), "p99": kl.quantile(0.99).item(), "largest": kl.max().item()}
        results[text] = {"tokens": kl.numel(), "kl": figures, "same_likeliest": agree}
        shown = " | ".join(f"{value:.2g}" for value in figures.values())
        print(f"| {text} | {kl.numel()} | {shown} | {agree:.2%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
