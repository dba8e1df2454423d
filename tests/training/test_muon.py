"""Muon against its float32 definition and against PyTorch's own; QK-Clip against algorithm 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openk2.config import preset
from openk2.models import ForwardBatch, K2Model
from openk2.training.init import random_init_
from openk2.training.muon import MuonClip, newton_schulz
from openk2.training.qk_clip import qk_clip_


class Net(nn.Module):
    """A little of everything that a parameter can be."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.square = nn.Linear(8, 8)
        self.tall = nn.Linear(8, 24, bias=False)
        self.stack = nn.Parameter(torch.empty(3, 6, 8))
        self.gate_up_proj = nn.Parameter(torch.empty(3, 12, 8))
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def set_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """One matrix, one step at a time, in float32: the definition."""
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if update.shape[0] > update.shape[1] else x


def test_updates_equal_the_definition() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = MuonClip(net, lr=0.02, weight_decay=0.1, newton_schulz_dtype=torch.float32)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for step in range(3):
        set_gradients(net, step)
        for name in ("square.weight", "tall.weight", "stack", "gate_up_proj"):
            gradient = dict(net.named_parameters())[name].grad
            momentum[name] = 0.95 * momentum[name] + gradient
            update = gradient + 0.95 * momentum[name]
            pieces = update.reshape(-1, 6, 8) if update.dim() == 3 else update[None]
            scale = 0.2 * max(pieces.shape[1:]) ** 0.5
            ortho = torch.stack([orthogonalised(p) for p in pieces]).reshape(update.shape)
            expected[name] = expected[name] * (1 - 0.02 * 0.1) - 0.02 * scale * ortho
        optimizer.step()
    for name in ("square.weight", "tall.weight", "stack", "gate_up_proj"):
        got = dict(net.named_parameters())[name].detach()
        assert (got - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_agrees_with_torch_muon_in_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    ours, theirs = nn.Linear(*shape[::-1], bias=False), nn.Linear(*shape[::-1], bias=False)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    a = MuonClip(ours, lr=0.02, weight_decay=0.0)
    b = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        a.step()
        b.step()
    update = theirs.weight.detach() - start
    assert (ours.weight.detach() - theirs.weight.detach()).norm() <= 0.03 * update.norm()


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(2)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    ours = MuonClip(net, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    names = ["embed_tokens.weight", "lm_head.weight", "norm.weight", "norm.bias", "square.bias"]
    parameters = dict(twin.named_parameters())
    theirs = torch.optim.AdamW([parameters[n] for n in names], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        set_gradients(net, step)
        set_gradients(twin, step)
        ours.step()
        theirs.step()
    for name in names:
        torch.testing.assert_close(dict(net.named_parameters())[name], parameters[name], atol=1e-6, rtol=1e-5)


def test_without_matrices_everything_is_adamw() -> None:
    torch.manual_seed(2)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    ours = MuonClip(net, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), matrices=False)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        set_gradients(net, step)
        set_gradients(twin, step)
        ours.step()
        theirs.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, dict(twin.named_parameters())[name], atol=1e-6, rtol=1e-5)
    assert ours.update_rms == 0 and ours.state_bytes == 2 * 4 * sum(p.numel() for p in net.parameters())


def test_a_matrix_has_one_momentum_and_the_rest_two_moments() -> None:
    net = Net()
    optimizer = MuonClip(net, lr=0.01)
    assert optimizer.state_bytes == 0
    set_gradients(net, 0)
    optimizer.step()
    matrices = sum(p.numel() for p in (net.square.weight, net.tall.weight, net.stack, net.gate_up_proj))
    rest = sum(p.numel() for p in net.parameters()) - matrices
    assert optimizer.state_bytes == 4 * (matrices + 2 * rest)


def test_newton_schulz_brings_singular_values_near_one() -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(4, 20, 50), dtype=torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("name", ["nano", "moonlight"])
def test_qk_clip_brings_the_logit_to_the_threshold(name: str) -> None:
    """Scaling a head's queries and keys scales its logits by exactly g, and no other head's."""
    from dataclasses import replace

    config = replace(preset("nano"), num_hidden_layers=1, q_lora_rank=preset(name).q_lora_rank and 64)
    model = K2Model(config)
    random_init_(model, 0)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.kv_b_proj.weight.mul_(3)
    before = {n: p.detach().clone() for n, p in attention.named_parameters()}

    def logits() -> torch.Tensor:
        maxima = torch.full((1, config.num_attention_heads), -torch.inf)
        with torch.no_grad():
            model(torch.arange(40), ForwardBatch.packed([40], max_logits=maxima))
        return maxima[0]

    first = logits()
    threshold = float(first.sort().values[-2] * 0.999)  # two heads pass it
    assert qk_clip_(model, first[None], threshold) == 2
    second = logits()
    passed = first > threshold
    torch.testing.assert_close(second[passed], torch.full((2,), threshold), rtol=1e-4, atol=0)
    torch.testing.assert_close(second[~passed], first[~passed], rtol=0, atol=0)
    torch.testing.assert_close(attention.kv_a_proj_with_mqa.weight, before["kv_a_proj_with_mqa.weight"], rtol=0, atol=0)
    values = attention.kv_b_proj.weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
    old = before["kv_b_proj.weight"].view_as(values)
    assert torch.equal(values[:, config.qk_nope_head_dim :], old[:, config.qk_nope_head_dim :])
