// The experts of a MoE layer in float32, forward and backward, for training; the definition is `moe_experts` of
// openk2/ops/reference/moe.py.
#pragma once

#include <stdint.h>

namespace openk2 {

// A pair is one expert of one token. `gate_up_out` holds the pairs by expert, an expert's in the order of their tokens.
struct TrainedExperts {
    int64_t tokens, topk, experts, width, hidden;  // width and hidden are multiples of kExpertColumns
    const float* x;        // (tokens, hidden)
    const int64_t* ids;    // (tokens, topk), each from 0 to experts - 1, of a token all different
    const float* weights;  // (tokens, topk)
    const float* gate_up;  // (experts, 2 width, hidden), gate rows first
    const float* down;     // (experts, hidden, width)
    float* gate_up_out;    // (tokens * topk, 2 width): what gate and up projections gave; written forward, read backward
    float* out;            // (tokens, hidden); forward only
    const float* grad;     // (tokens, hidden): of `out`; backward only, as what follows
    float *dx, *d_weights, *d_gate_up, *d_down;
    uint8_t* scratch;  // trained_experts_scratch bytes, 64-byte aligned
};

constexpr int64_t kExpertColumns = 32;
constexpr int64_t kTokenBlock = 512;  // whose sums over experts stay in the second-level cache
constexpr int64_t kPairTile = 64;     // pairs of one expert that are multiplied together

inline int64_t token_blocks(const TrainedExperts& a) { return (a.tokens + kTokenBlock - 1) / kTokenBlock; }

// Rows that a task works on: gathered, their products with gate and up, the hidden state and its gradient; and one more.
inline int64_t pair_tile_floats(const TrainedExperts& a) { return kPairTile * (a.hidden + 4 * a.width) + a.hidden; }

inline int64_t trained_experts_scratch(const TrainedExperts& a, bool backward) {
    const int64_t pairs = a.tokens * a.topk, blocks = token_blocks(a), matrices = 3 * a.experts * a.width * a.hidden;
    const int64_t integers = a.experts * blocks + 1 + pairs;
    return 4 * (integers + 16) + 4 * (blocks * pair_tile_floats(a) + (backward ? pairs * 3 * a.width : matrices));
}

}  // namespace openk2
