// Causal attention for training. A task is one head of one sequence; it goes through the queries in blocks of 32, with
// whole score rows against all keys up to the block's end (FlashAttention-2, arXiv:2307.08691, without key blocks: a
// block's scores stay in the second-level cache). Backward, the scores are computed again from the log-sum-exp.
//
// Sums run in an order that depends on the instruction set's register width only through which rows share registers;
// products may be fused (CMakeLists.txt): training promises no bits across machines.
#include "causal_attention.hpp"

#include "common/exponential.hpp"
#include "common/product.hpp"
#include "common/thread_pool.hpp"
#include "common/vector.hpp"

namespace openk2::OPENK2_ISA {
namespace {

// One head's rows of (tokens, heads, dim) as (length, padded), the rest 0.
void gather(const float* from, int64_t stride, int64_t dim, int64_t length, float* to, int64_t padded) {
    for (int64_t t = 0; t < length; ++t) {
        for (int64_t d = 0; d < dim; ++d) to[t * padded + d] = from[t * stride + d];
        for (int64_t d = dim; d < padded; ++d) to[t * padded + d] = 0.0f;
    }
}

void scatter(const float* from, int64_t padded, float* to, int64_t stride, int64_t dim, int64_t length) {
    for (int64_t t = 0; t < length; ++t)
        for (int64_t d = 0; d < dim; ++d) to[t * stride + d] = from[t * padded + d];
}

// (length, padded) to (dim, columns), the rest 0.
void turn(const float* from, int64_t padded, int64_t length, int64_t dim, float* to, int64_t columns) {
    transpose(from, padded, length, dim, to, columns);
    for (int64_t d = 0; d < dim; ++d)
        for (int64_t t = length; t < columns; ++t) to[d * columns + t] = 0.0f;
}

void clear(float* at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) at[i] = 0.0f;
}

// What a task works on: the head's part of a sequence.
struct Head {
    int64_t first, length, head, sequence;
    int64_t D, V, L;  // padded
    float *q, *k, *k_T, *v, *v_T, *g, *out, *dq_block, *dk, *dv, *delta, *scores, *d_scores;
};

Head head_at(const CausalAttention& a, int64_t task) {
    Head h = {};
    h.sequence = task / a.heads;
    h.head = task % a.heads;
    int64_t skipped = 0;
    for (int64_t s = 0; s < h.sequence; ++s) skipped += a.heads * head_floats(a, a.borders[s + 1] - a.borders[s]);
    h.first = a.borders[h.sequence];
    h.length = a.borders[h.sequence + 1] - h.first;
    h.D = padded_columns(a.key_dim);
    h.V = padded_columns(a.value_dim);
    h.L = padded_length(h.length);
    float* at = reinterpret_cast<float*>(a.scratch) + skipped + h.head * head_floats(a, h.length);
    const auto take = [&](int64_t floats) {
        float* taken = at;
        at += floats;
        return taken;
    };
    h.q = take(h.L * h.D);
    h.k = take(h.L * h.D);
    h.k_T = take(h.L * h.D);
    h.dk = take(h.L * h.D);
    h.v = take(h.L * h.V);
    h.v_T = take(h.L * h.V);
    h.g = take(h.L * h.V);
    h.out = take(h.L * h.V);
    h.dv = take(h.L * h.V);
    h.delta = take(h.L);
    h.scores = take(kQueryRows * h.L);
    h.d_scores = take(kQueryRows * h.L);
    h.dq_block = h.q;  // a block's queries are read before their gradient takes their place
    return h;
}

template <typename T>
T* of_head(T* base, const CausalAttention& a, const Head& h, int64_t dim) {
    return base + (h.first * a.heads + h.head) * dim;
}

inline F32 maximum(F32 a, F32 b) { return a > b ? a : b; }

// The first `count` lanes of x, where there are so many, and `other` in the rest.
inline F32 leading(F32 x, int64_t count, float other) {
    if (count >= kWidth) return x;
    U32 lanes;
    for (int l = 0; l < kWidth; ++l) lanes[l] = l;
    return lanes < static_cast<uint32_t>(count > 0 ? count : 0) ? x : F32{} + other;
}

void forward_head(const CausalAttention& a, int64_t task) {
    const Head h = head_at(a, task);
    gather(of_head(a.q, a, h, a.key_dim), a.heads * a.key_dim, a.key_dim, h.length, h.q, h.D);
    gather(of_head(a.k, a, h, a.key_dim), a.heads * a.key_dim, a.key_dim, h.length, h.k, h.D);
    turn(h.k, h.D, h.length, a.key_dim, h.k_T, h.L);
    gather(of_head(a.v, a, h, a.value_dim), a.heads * a.value_dim, a.value_dim, h.length, h.v, h.V);
    float largest = -__builtin_inff();
    for (int64_t lo = 0; lo < h.length; lo += kQueryRows) {
        const int64_t rows = h.length - lo < kQueryRows ? h.length - lo : kQueryRows;
        const int64_t span = padded_columns(lo + rows);  // at most L
        product<false>(h.q + lo * h.D, h.D, 1, h.k_T, h.L, h.scores, h.L, rows, span, a.key_dim);
        float inverse[kQueryRows];
        for (int64_t i = 0; i < rows; ++i) {
            float* row = h.scores + i * h.L;
            const int64_t seen = lo + i + 1;
            F32 tops = F32{} - __builtin_inff();
            for (int64_t j = 0; j < seen; j += kWidth)
                tops = maximum(tops, leading(load_part(row + j), seen - j, -__builtin_inff()));
            float top = tops[0];
            for (int l = 1; l < kWidth; ++l) top = tops[l] > top ? tops[l] : top;
            F32 sums = {};
            for (int64_t j = 0; j < span; j += kWidth) {
                const F32 p = leading(exponential((load_part(row + j) - top) * a.scale), seen - j, 0.0f);
                store_part(row + j, p);
                sums += p;
            }
            float sum = 0.0f;
            for (int l = 0; l < kWidth; ++l) sum += sums[l];
            inverse[i] = 1.0f / sum;
            a.lse[h.head * a.tokens + h.first + lo + i] = top * a.scale + __builtin_logf(sum);
            largest = top * a.scale > largest ? top * a.scale : largest;
        }
        float* out = h.out + lo * h.V;
        product<false>(h.scores, h.L, 1, h.v, h.V, out, h.V, rows, h.V, lo + rows);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t d = 0; d < h.V; ++d) out[i * h.V + d] *= inverse[i];
    }
    scatter(h.out, h.V, of_head(a.out, a, h, a.value_dim), a.heads * a.value_dim, a.value_dim, h.length);
    a.largest[h.head * a.sequences + h.sequence] = largest;
}

void backward_head(const CausalAttention& a, int64_t task) {
    const Head h = head_at(a, task);
    const int64_t key_stride = a.heads * a.key_dim, value_stride = a.heads * a.value_dim;
    gather(of_head(a.q, a, h, a.key_dim), key_stride, a.key_dim, h.length, h.q, h.D);
    gather(of_head(a.k, a, h, a.key_dim), key_stride, a.key_dim, h.length, h.k, h.D);
    turn(h.k, h.D, h.length, a.key_dim, h.k_T, h.L);
    gather(of_head(a.v, a, h, a.value_dim), value_stride, a.value_dim, h.length, h.v, h.V);
    turn(h.v, h.V, h.length, a.value_dim, h.v_T, h.L);
    gather(of_head(a.grad, a, h, a.value_dim), value_stride, a.value_dim, h.length, h.g, h.V);
    const float* out = of_head<const float>(a.out, a, h, a.value_dim);
    for (int64_t t = 0; t < h.length; ++t) {
        float sum = 0.0f;
        for (int64_t d = 0; d < a.value_dim; ++d) sum += out[t * value_stride + d] * h.g[t * h.V + d];
        h.delta[t] = sum;
    }
    clear(h.dk, h.L * h.D);
    clear(h.dv, h.L * h.V);
    for (int64_t lo = 0; lo < h.length; lo += kQueryRows) {
        const int64_t rows = h.length - lo < kQueryRows ? h.length - lo : kQueryRows;
        const int64_t keys = lo + rows, span = padded_columns(keys);
        product<false>(h.q + lo * h.D, h.D, 1, h.k_T, h.L, h.scores, h.L, rows, span, a.key_dim);
        product<false>(h.g + lo * h.V, h.V, 1, h.v_T, h.L, h.d_scores, h.L, rows, span, a.value_dim);
        for (int64_t i = 0; i < rows; ++i) {
            float *p = h.scores + i * h.L, *d = h.d_scores + i * h.L;
            const float lse = a.lse[h.head * a.tokens + h.first + lo + i], delta = h.delta[lo + i];
            for (int64_t j = 0; j < span; j += kWidth) {
                const F32 prob = leading(exponential(load_part(p + j) * a.scale - lse), lo + i + 1 - j, 0.0f);
                store_part(p + j, prob);
                store_part(d + j, (load_part(d + j) - delta) * prob * a.scale);
            }
        }
        product<true>(h.d_scores, 1, h.L, h.q + lo * h.D, h.D, h.dk, h.D, keys, h.D, rows);
        product<true>(h.scores, 1, h.L, h.g + lo * h.V, h.V, h.dv, h.V, keys, h.V, rows);
        product<false>(h.d_scores, h.L, 1, h.k, h.D, h.dq_block + lo * h.D, h.D, rows, h.D, keys);
    }
    scatter(h.q, h.D, of_head(a.dq, a, h, a.key_dim), key_stride, a.key_dim, h.length);
    scatter(h.dk, h.D, of_head(a.dk, a, h, a.key_dim), key_stride, a.key_dim, h.length);
    scatter(h.dv, h.V, of_head(a.dv, a, h, a.value_dim), value_stride, a.value_dim, h.length);
}

}  // namespace

void causal_attention(const CausalAttention& a) {
    parallel_for(a.heads * a.sequences, [&](int64_t task) { forward_head(a, task); });
}

void causal_attention_backward(const CausalAttention& a) {
    parallel_for(a.heads * a.sequences, [&](int64_t task) { backward_head(a, task); });
}

}  // namespace openk2::OPENK2_ISA
