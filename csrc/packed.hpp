// Matrices in the packed layout, and what multiplies by them. The layout is described in openk2/ops/packed.py.
#pragma once

#include <stdint.h>

namespace openk2 {

enum class PackedFormat : int { bf16 = 0, int8 = 1, int4 = 2 };

// `count` matrices (rows, cols), one after the other.
struct PackedStack {
    const uint8_t* data;
    PackedFormat format;
    int64_t count;
    int64_t rows;
    int64_t cols;
};

// out (tokens, rows) = x (tokens, cols) times matrix 0 transposed. Scratch: packed_linear_scratch bytes.
struct PackedLinear {
    const float* x;
    PackedStack weight;
    float* out;
    uint8_t* scratch;
    int64_t tokens;
};

// out[t] = sum over k of weights[t, k] * down[e](silu(gate[e] x[t]) * (up[e] x[t])), e = ids[t, k], in the order of k;
// pairs of weight 0 are not computed. gate_up: (2 experts, width, hidden), an expert's gate before its up; down:
// (experts, hidden, width); both of one format. Scratch: packed_experts_scratch bytes.
struct PackedExperts {
    const float* x;
    const int64_t* ids;
    const float* weights;
    PackedStack gate_up;
    PackedStack down;
    float* out;
    uint8_t* scratch;
    int64_t tokens;
    int64_t topk;
};

namespace {  // one copy per translation unit: each is compiled for its own instruction set

constexpr int64_t kTileRows = 16;
constexpr int64_t kGroup = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t padded(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

constexpr int64_t block_bytes(PackedFormat format) {
    return format == PackedFormat::bf16 ? 1024 : format == PackedFormat::int8 ? 544 : 288;
}

inline int64_t tile_bytes(const PackedStack& stack) { return ceil_div(stack.cols, kGroup) * block_bytes(stack.format); }
inline int64_t matrix_bytes(const PackedStack& stack) { return ceil_div(stack.rows, kTileRows) * tile_bytes(stack); }

// Bytes of `rows` activations as the kernels of a format read them.
inline int64_t activation_bytes(PackedFormat format, int64_t rows, int64_t cols) {
    const int64_t groups = ceil_div(cols, kGroup);
    if (format == PackedFormat::bf16) return padded(rows * groups * kGroup * 4);
    return padded(rows * groups * kGroup) + 2 * padded(rows * groups * 4);
}

inline int64_t packed_linear_scratch(const PackedLinear& args) {
    return activation_bytes(args.weight.format, args.tokens, args.weight.cols);
}

inline int64_t packed_experts_scratch(const PackedExperts& args) {
    const int64_t pairs = args.tokens * args.topk, experts = args.down.count;
    return activation_bytes(args.gate_up.format, args.tokens, args.gate_up.cols) +
           activation_bytes(args.down.format, pairs, args.down.cols) + padded(pairs * args.down.rows * 4) +
           padded((experts + 1) * 4) + padded(pairs * 4) + padded(experts * 4);
}

}  // namespace
}  // namespace openk2
