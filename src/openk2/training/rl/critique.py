"""The policy's own judgement of answers that no check can wholly judge: K2's self-critique reward in small
(arXiv:2507.20534, section 3.2.2).

The model is asked each question of a rubric about an answer; its score is how likely it says yes rather than no. K2
compares answers in pairs and trains its critic on checked tasks; here `critic_gap` in the log says whether the critic
tells right from wrong at all, and the weight is small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.chat.messages import Completion, Message
from openk2.chat.template import ChatTemplate
from openk2.evals.cases import Case
from openk2.models import ForwardBatch, K2Model

_ASK = "A user talked to an assistant.\n{talk}\nassistant: {answer}\n{question} Say yes or no."
AT_ONCE = 16
"""Questions of one pass."""


@torch.no_grad()
def critique(
    model: K2Model, template: ChatTemplate, answers: Sequence[tuple[Case, Completion]], rubric: Sequence[str]
) -> list[float]:
    """The mean over the rubric of P(yes) / (P(yes) + P(no)), for each answer: 0 to 1.

    A question that does not fit the model's window is not asked; an answer with none has 0.
    """
    yes, no = (template.tokenizer.encode(word)[0] for word in ("yes", "no"))
    window = model.config.max_position_embeddings
    prompts: list[list[int]] = []
    owners: list[int] = []
    for number, (case, reply) in enumerate(answers):
        talk = "\n".join(f"{message.role}: {_told(message)}" for message in case.messages)
        for question in rubric:
            asked = _ASK.format(talk=talk, answer=_told(reply.message), question=question)
            prompt = template.render([Message("user", asked)])
            if len(prompt) <= window:
                prompts.append(prompt)
                owners.append(number)
    scores: list[Tensor] = []
    device = model.model.embed_tokens.weight.device
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        batch = ForwardBatch.packed([len(prompt) for prompt in part], device=device)
        hidden = model(torch.tensor([token for prompt in part for token in prompt], device=device), batch)
        logits = model.compute_logits(hidden[torch.tensor(batch.cu_seqlens[1:], device=device) - 1])
        scores.append((logits[:, yes] - logits[:, no]).sigmoid().cpu())
    if not scores:
        return [0.0] * len(answers)
    owner = torch.tensor(owners)
    total = torch.zeros(len(answers)).index_add(0, owner, torch.cat(scores))
    return (total / owner.bincount(minlength=len(answers)).clamp(min=1)).tolist()


def _told(message: Message) -> str:
    calls = [f"[calls {call.name} with {call.arguments}]" for call in message.tool_calls]
    return " ".join([*([message.text] if message.text else []), *calls])
