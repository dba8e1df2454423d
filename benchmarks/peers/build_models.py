"""Random checkpoints, and the same weights as GGUF files of llama.cpp: what `side_by_side.py` times.

    pip install gguf llama-cpp-python
    python benchmarks/peers/build_models.py FOLDER [--models mini nano]

FOLDER/MODEL/hf is a checkpoint folder in bfloat16. FOLDER/MODEL/bf16.gguf holds the same numbers under architecture
deepseek2, as llama.cpp's own converter lays them out: experts of a layer stacked, `kv_b_proj` cut into the two factors
of absorbed attention, norms and routers in float32. llama.cpp then quantises it to Q4_0 and Q4_K_M. Files that are
there are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2.checkpoint import load_model, random_model, save_model
from openk2.config import ModelConfig, preset
from openk2.models import K2Model

SHAPES = {
    "mini": preset("mini"),
    # 16M parameters: calls, not arithmetic, take the time. Not k2-nano, whose rows no block of 256 weights divides.
    "nano": replace(
        preset("mini"),
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        moe_intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        q_lora_rank=256,
        kv_lora_rank=256,
        n_routed_experts=8,
        num_experts_per_tok=2,
    ),
}
QUANTISED = ("q4_0", "q4_k_m")
NAMES = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.q_proj": "attn_q",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""A layer's tensors that keep their shape."""
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_tensors(model: K2Model) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names and tensors, of the published ones. Memory: the experts of one layer at most."""
    config, experts = model.config, {}
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    for name, tensor in model.checkpoint_tensors():
        stem = name.removesuffix(".weight")
        if stem in TOP_NAMES:
            yield f"{TOP_NAMES[stem]}.weight", tensor
            continue
        _, _, layer, part = stem.split(".", 3)
        block = f"blk.{layer}"
        if part.endswith("e_score_correction_bias"):
            yield f"{block}.exp_probs_b.bias", tensor
        elif part.startswith("mlp.experts."):
            *_, number, kind = part.split(".")
            experts[kind, int(number)] = tensor
            if sum(other == kind for other, _ in experts) == config.n_routed_experts:
                stack = torch.stack([experts.pop((kind, i)) for i in range(config.n_routed_experts)])
                yield f"{block}.ffn_{kind.removesuffix('_proj')}_exps.weight", stack
        elif part == "self_attn.kv_b_proj":
            heads = tensor.view(config.num_attention_heads, nope + value, config.kv_lora_rank)
            yield f"{block}.attn_k_b.weight", heads[:, :nope].transpose(1, 2).contiguous()
            yield f"{block}.attn_v_b.weight", heads[:, nope:].contiguous()
        else:
            yield f"{block}.{NAMES[part]}.weight", tensor


def write_gguf(model: K2Model, path: Path) -> None:
    """In bfloat16. Routing as mini has it: sigmoid scores, one group, normalised weights; no YaRN, no vocabulary."""
    import gguf

    config = model.config
    assert config.rope_scaling is None and config.norm_topk_prob and config.n_group == 1, "as the shapes here are"
    writer = gguf.GGUFWriter(path, "deepseek2", use_temp_file=True)
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_BF16))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)  # of the latent: every head reads the same
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_nope_head_dim + rope)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in gguf_tensors(model):
        if tensor.dim() == 1 or name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, tensor.float().numpy())
        else:
            pairs = tensor.to(torch.bfloat16).contiguous().view(torch.uint8)  # (..., 2 cols): what numpy can hold
            writer.add_tensor(name, pairs.numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, path: Path, kind: str) -> None:
    """By llama.cpp's own quantiser, with the mixture of formats that it takes for `kind`."""
    import llama_cpp

    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.nthread = torch.get_num_threads()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings):
        raise SystemExit(f"{path}: llama.cpp cannot quantise {source}")


def build(config: ModelConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, plain = folder / "hf", folder / "bf16.gguf"
    if not checkpoint.is_dir():
        save_model(random_model(config, dtype=torch.bfloat16), checkpoint)
    if not plain.is_file():
        into(plain, lambda path: write_gguf(load_model(checkpoint), path))
    for kind in QUANTISED:
        if not (folder / f"{kind}.gguf").is_file():
            into(folder / f"{kind}.gguf", lambda path, kind=kind: quantise(plain, path, kind))


def into(path: Path, write: Any) -> None:
    """A file that is there is whole: written beside, then renamed."""
    aside = path.with_name(f"{path.name}.writing")
    write(aside)
    aside.rename(path)
    print(f"{path}: {path.stat().st_size / 1e6:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    for name in arguments.models:
        build(SHAPES[name], arguments.folder / name)


if __name__ == "__main__":
    main()
