// The experts of a MoE layer for training. Pairs are sorted by expert. Forward, and backward towards the inputs, a task
// is a block of tokens: it takes the block's pairs expert by expert and adds each product to its token's row while the
// block's rows are in the cache, so no pair's output is ever stored. Backward towards the weights, a task is an expert.
//
// How the work is cut depends on shapes alone: any number of threads gives the same bits. Products may be fused
// (CMakeLists.txt): training promises no bits across machines.
#include "trained_experts.hpp"

#include "common/exponential.hpp"
#include "common/product.hpp"
#include "common/thread_pool.hpp"
#include "common/vector.hpp"

namespace openk2::OPENK2_ISA {
namespace {

void clear(float* at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) at[i] = 0.0f;
}

// Of n floats, n a multiple of a register.
void copy(const float* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; i += kWidth) store_part(to + i, load_part(from + i));
}

struct Pairs {
    int32_t* begins;  // (experts, blocks) and one more: where in `order` an expert's pairs of a block of tokens begin
    int32_t* order;   // pair numbers (token * topk + k)
    int64_t blocks;
    float* rest;  // scratch after them

    int32_t begin(int64_t expert, int64_t block) const { return begins[expert * blocks + block]; }
    int32_t end(int64_t expert, int64_t block) const { return begins[expert * blocks + block + 1]; }
};

Pairs sorted_pairs(const TrainedExperts& a) {
    Pairs p = {};
    p.blocks = token_blocks(a);
    const int64_t pairs = a.tokens * a.topk, places = a.experts * p.blocks, in_block = kTokenBlock * a.topk;
    p.begins = reinterpret_cast<int32_t*>(a.scratch);
    p.order = p.begins + places + 1;
    p.rest = reinterpret_cast<float*>(a.scratch) + (places + 1 + pairs + 15) / 16 * 16;
    for (int64_t i = 0; i <= places; ++i) p.begins[i] = 0;
    for (int64_t i = 0; i < pairs; ++i) ++p.begins[a.ids[i] * p.blocks + i / in_block];
    int32_t end = 0;
    for (int64_t i = 0; i < places; ++i) p.begins[i] = end += p.begins[i];
    p.begins[places] = end;
    for (int64_t i = pairs - 1; i >= 0; --i)  // backwards: each begin comes down to where it belongs
        p.order[--p.begins[a.ids[i] * p.blocks + i / in_block]] = static_cast<int32_t>(i);
    return p;
}

// The working rows of one task, and of `none` one more row, where what is added to no token goes.
struct Tile {
    float *in, *gate_up, *hidden, *d_hidden, *none;

    Tile(const TrainedExperts& a, float* rest, int64_t task) {
        in = rest + task * pair_tile_floats(a);
        none = in + kPairTile * a.hidden;
        gate_up = none + a.hidden;
        hidden = gate_up + kPairTile * 2 * a.width;
        d_hidden = hidden + kPairTile * a.width;
    }
};

// Calls body(first, rows) for each tile of the pairs from `begin` to `end`.
template <typename Body>
void tiles(int64_t begin, int64_t end, const Body& body) {
    for (int64_t first = begin; first < end; first += kPairTile)
        body(first, end - first < kPairTile ? end - first : kPairTile);
}

// Products take whole groups of rows: a tile is filled up with zeros.
int64_t whole_rows(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }

void gather(const TrainedExperts& a, const float* from, const int32_t* order, int64_t rows, float* to) {
    for (int64_t i = 0; i < rows; ++i) copy(from + order[i] / a.topk * a.hidden, to + i * a.hidden, a.hidden);
    clear(to + rows * a.hidden, (whole_rows(rows) - rows) * a.hidden);
}

// Products of a tile that are added to its tokens' rows; an expert has a token but once.
struct ToTokens {
    const float* A;
    int64_t lda;
    const float* B;
    int64_t ldb;
    float* rows[kPairTile];

    ToTokens(const TrainedExperts& a, const float* A, int64_t lda, const float* B, float* to, const int32_t* order,
             int64_t pairs, float* none)
        : A(A), lda(lda), B(B), ldb(a.hidden) {
        for (int64_t i = 0; i < whole_rows(pairs); ++i) rows[i] = i < pairs ? to + order[i] / a.topk * a.hidden : none;
    }
    float a(int64_t i, int64_t k) const { return A[i * lda + k]; }
    const float* b(int64_t k) const { return B + k * ldb; }
    float* c(int64_t i) const { return rows[i]; }
};

// The tokens' rows of a tile, for sums over its pairs.
struct FromTokens {
    const float* rows[kPairTile];

    FromTokens(const TrainedExperts& a, const float* from, const int32_t* order, int64_t pairs) {
        for (int64_t i = 0; i < pairs; ++i) rows[i] = from + order[i] / a.topk * a.hidden;
    }
};

struct DGateUp : FromTokens {
    const float* grad;  // (pairs, 2 width)
    float* to;          // (2 width, hidden)
    int64_t width, hidden;

    float a(int64_t i, int64_t k) const { return grad[k * 2 * width + i]; }
    const float* b(int64_t k) const { return rows[k]; }
    float* c(int64_t i) const { return to + i * hidden; }
};

struct DDown : FromTokens {
    const float* h;  // (pairs, width)
    float* to;       // (hidden, width)
    int64_t width;

    float a(int64_t i, int64_t k) const { return rows[k][i]; }
    const float* b(int64_t k) const { return h + k * width; }
    float* c(int64_t i) const { return to + i * width; }
};

inline F32 sigmoid(F32 x) { return 1.0f / (1.0f + exponential(-x)); }

// One block of tokens, forward. `turned`: each expert's gate_up as (hidden, 2 width), then its down as (width, hidden).
void forward_block(const TrainedExperts& a, const Pairs& pairs, const float* turned, float* rest, int64_t block) {
    const int64_t D = a.hidden, F = a.width;
    const Tile t(a, rest, block);
    const int64_t first_token = block * kTokenBlock;
    const int64_t tokens = a.tokens - first_token < kTokenBlock ? a.tokens - first_token : kTokenBlock;
    clear(a.out + first_token * D, tokens * D);
    for (int64_t e = 0; e < a.experts; ++e) {
        const float* gate_up = turned + e * 3 * F * D;
        const float* down = gate_up + 2 * F * D;
        tiles(pairs.begin(e, block), pairs.end(e, block), [&](int64_t first, int64_t rows) {
            const int32_t* order = pairs.order + first;
            const int64_t whole = whole_rows(rows);
            gather(a, a.x, order, rows, t.in);
            product<false>(t.in, D, 1, gate_up, 2 * F, t.gate_up, 2 * F, whole, 2 * F, D);
            copy(t.gate_up, a.gate_up_out + first * 2 * F, rows * 2 * F);
            for (int64_t i = 0; i < whole; ++i) {
                const float *gate = t.gate_up + i * 2 * F, *up = gate + F;
                const float weight = i < rows ? a.weights[order[i]] : 0.0f;
                for (int64_t f = 0; f < F; f += kWidth) {
                    const F32 g = load_part(gate + f);
                    store_part(t.hidden + i * F + f, g * sigmoid(g) * load_part(up + f) * weight);
                }
            }
            product<true>(ToTokens(a, t.hidden, F, down, a.out, order, rows, t.none), whole, D, F);
        });
    }
}

// One block of tokens, backward: dx and d_weights, and of each pair the gradient at gate and up and its weighted hidden
// state, for the weights.
void backward_block(const TrainedExperts& a, const Pairs& pairs, float* d_gate_up_out, float* hidden, float* rest,
                    int64_t block) {
    const int64_t D = a.hidden, F = a.width;
    const Tile t(a, rest, block);
    const int64_t first_token = block * kTokenBlock;
    const int64_t tokens = a.tokens - first_token < kTokenBlock ? a.tokens - first_token : kTokenBlock;
    clear(a.dx + first_token * D, tokens * D);
    for (int64_t e = 0; e < a.experts; ++e) {
        tiles(pairs.begin(e, block), pairs.end(e, block), [&](int64_t first, int64_t rows) {
            const int32_t* order = pairs.order + first;
            const int64_t whole = whole_rows(rows);
            gather(a, a.grad, order, rows, t.in);
            product<false>(t.in, D, 1, a.down + e * D * F, F, t.d_hidden, F, whole, F, D);
            for (int64_t i = 0; i < rows; ++i) {
                const float *gate = a.gate_up_out + (first + i) * 2 * F, *up = gate + F;
                const float weight = a.weights[order[i]];
                F32 sums = {};
                for (int64_t f = 0; f < F; f += kWidth) {
                    const F32 g = load_part(gate + f), u = load_part(up + f), d = load_part(t.d_hidden + i * F + f);
                    const F32 s = sigmoid(g), silu = g * s, h = silu * u;
                    sums += h * d;
                    store_part(hidden + (first + i) * F + f, h * weight);
                    store_part(t.gate_up + i * 2 * F + f, d * weight * u * (s + silu * (1.0f - s)));
                    store_part(t.gate_up + i * 2 * F + F + f, d * weight * silu);
                }
                float sum = 0.0f;
                for (int l = 0; l < kWidth; ++l) sum += sums[l];
                a.d_weights[order[i]] = sum;
            }
            clear(t.gate_up + rows * 2 * F, (whole - rows) * 2 * F);
            copy(t.gate_up, d_gate_up_out + first * 2 * F, rows * 2 * F);
            const float* gate_up = a.gate_up + e * 2 * F * D;
            product<true>(ToTokens(a, t.gate_up, 2 * F, gate_up, a.dx, order, rows, t.none), whole, D, 2 * F);
        });
    }
}

// One expert's matrices, backward.
void backward_expert(const TrainedExperts& a, const Pairs& pairs, const float* d_gate_up_out, const float* hidden,
                     int64_t e) {
    const int64_t D = a.hidden, F = a.width;
    float *d_gate_up = a.d_gate_up + e * 2 * F * D, *d_down = a.d_down + e * D * F;
    clear(d_gate_up, 2 * F * D);
    clear(d_down, D * F);
    tiles(pairs.begin(e, 0), pairs.end(e, pairs.blocks - 1), [&](int64_t first, int64_t rows) {
        const int32_t* order = pairs.order + first;
        product<true>(DGateUp{{a, a.x, order, rows}, d_gate_up_out + first * 2 * F, d_gate_up, F, D}, 2 * F, D, rows);
        product<true>(DDown{{a, a.grad, order, rows}, hidden + first * F, d_down, F}, D, F, rows);
    });
}

}  // namespace

void trained_experts(const TrainedExperts& a) {
    const int64_t D = a.hidden, F = a.width;
    const Pairs pairs = sorted_pairs(a);
    float *turned = pairs.rest, *rest = turned + a.experts * 3 * F * D;
    parallel_for(a.experts, [&](int64_t e) {
        float* to = turned + e * 3 * F * D;
        transpose(a.gate_up + e * 2 * F * D, D, 2 * F, D, to, 2 * F);
        transpose(a.down + e * D * F, F, D, F, to + 2 * F * D, D);
    });
    parallel_for(pairs.blocks, [&](int64_t block) { forward_block(a, pairs, turned, rest, block); });
}

void trained_experts_backward(const TrainedExperts& a) {
    const int64_t count = a.tokens * a.topk;
    const Pairs pairs = sorted_pairs(a);
    float *d_gate_up_out = pairs.rest, *hidden = d_gate_up_out + count * 2 * a.width, *rest = hidden + count * a.width;
    parallel_for(pairs.blocks, [&](int64_t block) { backward_block(a, pairs, d_gate_up_out, hidden, rest, block); });
    parallel_for(a.experts, [&](int64_t e) { backward_expert(a, pairs, d_gate_up_out, hidden, e); });
}

}  // namespace openk2::OPENK2_ISA
