// What latent attention's projections give, as queries, keys and values of its expanded form, and the way back for
// gradients; float32, for training. The definition is `attention_inputs` of openk2/ops/reference/mla.py.
#pragma once

#include <stdint.h>

namespace openk2 {

// A head's query is nope dimensions as they are and rope rotated ones, interleaved in pairs; its key is its own nope
// dimensions and the rope rotated ones that all heads share.
struct AttentionInputs {
    int64_t tokens, heads, nope, rope, value;
    const float *cos, *sin;  // (tokens, rope / 2)
    float* q;                // (tokens, heads, nope + rope), not rotated
    float* kv;               // (tokens, heads, nope + value)
    float* k_pe;             // (tokens, rope), not rotated, rows k_pe_row floats apart
    int64_t k_pe_row;
    float *query, *key;  // (tokens, heads, nope + rope)
    float* values;       // (tokens, heads, value)
};

constexpr int64_t kInputRows = 128;  // tokens of one task

}  // namespace openk2
