// Causal attention of packed sequences in float32, forward and backward, for training; the definition is
// openk2/ops/reference/mla.py.
#pragma once

#include <stdint.h>

namespace openk2 {

struct CausalAttention {
    int64_t tokens, heads, key_dim, value_dim;
    const int64_t* borders;  // (sequences + 1): of the packed sequences, from 0 to tokens
    int64_t sequences;
    float scale;
    const float *q, *k;  // (tokens, heads, key_dim)
    const float* v;      // (tokens, heads, value_dim)
    float* out;          // (tokens, heads, value_dim): written forward, read backward
    float* lse;          // (heads, tokens): log of the sum of exponentials, likewise
    float* largest;      // (heads, sequences): the largest scaled score; forward only
    const float* grad;   // (tokens, heads, value_dim): of `out`; backward only, as what follows
    float *dq, *dk, *dv;
    uint8_t* scratch;  // causal_attention_scratch bytes, 64-byte aligned
};

constexpr int64_t kQueryRows = 32;
constexpr int64_t kColumnPad = 16;  // columns of every product come in so many: whole registers

inline int64_t padded_columns(int64_t columns) { return (columns + kColumnPad - 1) / kColumnPad * kColumnPad; }

// Columns of a row of scores and of the transposed keys: an odd number of cache lines, since rows a power of two apart
// would share a few sets of the first-level cache.
inline int64_t padded_length(int64_t length) { return padded_columns(length) | kColumnPad; }

// Floats that one head of a sequence of `length` tokens needs: keys and values in both orders, queries, gradients, two
// blocks of scores.
inline int64_t head_floats(const CausalAttention& a, int64_t length) {
    const int64_t D = padded_columns(a.key_dim), V = padded_columns(a.value_dim), L = padded_length(length);
    return L * (4 * D + 5 * V + 1) + 2 * kQueryRows * L;
}

inline int64_t causal_attention_scratch(const CausalAttention& a) {
    int64_t floats = 0;
    for (int64_t s = 0; s < a.sequences; ++s) floats += a.heads * head_floats(a, a.borders[s + 1] - a.borders[s]);
    return 4 * floats;
}

}  // namespace openk2
