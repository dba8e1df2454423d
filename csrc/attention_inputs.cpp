// Forward, the first three tensors are read and the last three written; backward, where all are gradients, the other
// way round.
#include "attention_inputs.hpp"

#include "common/thread_pool.hpp"

namespace openk2::OPENK2_ISA {
namespace {

void copy(const float* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// Each pair turned by its angle; `turn` -1 turns back.
void rotate(const float* from, float* to, const float* cos, const float* sin, int64_t rope, float turn) {
    for (int64_t i = 0; i < rope / 2; ++i) {
        const float even = from[2 * i], odd = from[2 * i + 1], s = sin[i] * turn;
        to[2 * i] = even * cos[i] - odd * s;
        to[2 * i + 1] = odd * cos[i] + even * s;
    }
}

void forward_token(const AttentionInputs& a, int64_t t) {
    const float *cos = a.cos + t * a.rope / 2, *sin = a.sin + t * a.rope / 2;
    float* shared = nullptr;
    for (int64_t row = t * a.heads; row < (t + 1) * a.heads; ++row) {
        const float *q = a.q + row * (a.nope + a.rope), *kv = a.kv + row * (a.nope + a.value);
        float *query = a.query + row * (a.nope + a.rope), *key = a.key + row * (a.nope + a.rope);
        copy(q, query, a.nope);
        rotate(q + a.nope, query + a.nope, cos, sin, a.rope, 1.0f);
        copy(kv, key, a.nope);
        if (shared)
            copy(shared, key + a.nope, a.rope);
        else
            rotate(a.k_pe + t * a.k_pe_row, shared = key + a.nope, cos, sin, a.rope, 1.0f);
        copy(kv + a.nope, a.values + row * a.value, a.value);
    }
}

void backward_token(const AttentionInputs& a, int64_t t) {
    const float *cos = a.cos + t * a.rope / 2, *sin = a.sin + t * a.rope / 2;
    float* k_pe = a.k_pe + t * a.k_pe_row;
    for (int64_t i = 0; i < a.rope; ++i) k_pe[i] = 0.0f;
    for (int64_t row = t * a.heads; row < (t + 1) * a.heads; ++row) {
        const float *query = a.query + row * (a.nope + a.rope), *key = a.key + row * (a.nope + a.rope);
        float *q = a.q + row * (a.nope + a.rope), *kv = a.kv + row * (a.nope + a.value);
        copy(query, q, a.nope);
        rotate(query + a.nope, q + a.nope, cos, sin, a.rope, -1.0f);
        copy(key, kv, a.nope);
        for (int64_t i = 0; i < a.rope; ++i) k_pe[i] += key[a.nope + i];
        copy(a.values + row * a.value, kv + a.nope, a.value);
    }
    rotate(k_pe, k_pe, cos, sin, a.rope, -1.0f);
}

template <typename Token>
void for_tokens(const AttentionInputs& a, const Token& token) {
    parallel_for((a.tokens + kInputRows - 1) / kInputRows, [&](int64_t task) {
        const int64_t end = (task + 1) * kInputRows < a.tokens ? (task + 1) * kInputRows : a.tokens;
        for (int64_t t = task * kInputRows; t < end; ++t) token(t);
    });
}

}  // namespace

void attention_inputs(const AttentionInputs& a) {
    for_tokens(a, [&](int64_t t) { forward_token(a, t); });
}

void attention_inputs_backward(const AttentionInputs& a) {
    for_tokens(a, [&](int64_t t) { backward_token(a, t); });
}

}  // namespace openk2::OPENK2_ISA
