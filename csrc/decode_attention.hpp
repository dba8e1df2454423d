// Attention of generated tokens to the paged latent cache, absorbed: the keys are the cached latents themselves
// (DeepSeek-V2, arXiv:2405.04434, section 2.1.2). Softmax runs tile by tile with the largest score so far
// (arXiv:1805.02867).
//
// What a head of a token gets depends on its query and its sequence alone: who computes it beside which other heads or
// tokens changes no bit.
#pragma once

#include "common/dots.hpp"
#include "common/exponential.hpp"
#include "decode_layers.hpp"

namespace openk2 {
namespace {

constexpr int64_t kKeyTile = 64;
constexpr float kLowest = -3.0e38f;
constexpr int kAbsorbedTokens = kRegisterBytes == 64 ? 4 : 2;
constexpr int kAbsorbedRows = 4;
constexpr int64_t kScoredHeads = 8;  // their queries stay in the first cache
constexpr int kMixedHeads = kRegisterBytes == 64 ? 8 : 4;
constexpr int kMixedLanes = kRegisterBytes == 64 ? 2 : 1;

struct DecodeAttention {
    const DecodeLayers& args;
    const DecodeLayer& layer;
    const float* q;  // (tokens, heads, nope + rope), rotated
    float* queries;  // (tokens, heads, latent + rope)
    float* latents;  // (tokens, heads, latent): the mean of those in the cache
    float* out;      // (tokens, heads, value)

    int64_t width() const { return args.shape.latent + args.shape.rope; }
    int64_t place(int64_t token, int64_t head) const { return token * args.shape.heads + head; }
    // A head's rows of kv_b: `nope` for the keys, then `value`.
    const bf16* matrix(int64_t head) const {
        const DecodeShape& s = args.shape;
        return reinterpret_cast<const bf16*>(layer.kv_b) + head * (s.nope + s.value) * s.latent;
    }
};

// to[m] += the sum of R rows of w, each times its q[m], in their order.
template <int R, int M>
inline void add_rows(const bf16* w, int64_t count, const float* const (&q)[M], float* const (&to)[M]) {
    for_lanes(count, [&](int64_t i, auto lanes) {
        Lanes rows[R];
        for (int r = 0; r < R; ++r) {
            prefetch(w + (r + kAbsorbedRows) * count + i);
            rows[r] = lanes.load(w + r * count + i);
        }
        for (int m = 0; m < M; ++m) {
            Lanes total = lanes.load(to[m] + i);
            for (int r = 0; r < R; ++r) add_product(total, rows[r], q[m][r]);
            lanes.store(to[m] + i, total);
        }
    });
}

// The queries of one head of all tokens, as vectors of the latent space.
inline void absorb(const DecodeAttention& a, int64_t head) {
    const DecodeShape& s = a.args.shape;
    for (int64_t token = 0; token < a.args.tokens; token += kAbsorbedTokens)
        as_constant<kAbsorbedTokens>(a.args.tokens - token, [&](auto num_tokens) {
            constexpr int M = decltype(num_tokens)::value;
            const float* q[M];
            float* queries[M];
            for (int m = 0; m < M; ++m) {
                q[m] = a.q + a.place(token + m, head) * (s.nope + s.rope);
                queries[m] = a.queries + a.place(token + m, head) * a.width();
                for (int64_t i = 0; i < s.latent; ++i) queries[m][i] = 0.0f;
                for (int64_t i = 0; i < s.rope; ++i) queries[m][s.latent + i] = q[m][s.nope + i];
            }
            const bf16* w = a.matrix(head);
            for (int64_t n = 0; n < s.nope; n += kAbsorbedRows)
                as_constant<kAbsorbedRows>(s.nope - n, [&](auto num_rows) {
                    constexpr int R = decltype(num_rows)::value;
                    add_rows<R, M>(w + n * s.latent, s.latent, q, queries);
                    for (int m = 0; m < M; ++m) q[m] += R;
                });
        });
}

// The values of one head of all tokens, from their means in the latent space.
inline void expand(const DecodeAttention& a, int64_t head) {
    const DecodeShape& s = a.args.shape;
    all_dots<Streamed::rows>(
        a.matrix(head) + s.nope * s.latent, s.latent, s.value, a.args.tokens, s.latent,
        [&](int64_t token) { return a.latents + a.place(token, head) * s.latent; },
        [&](int64_t row, int64_t token, float value) { a.out[a.place(token, head) * s.value + row] = value; });
}

inline float largest_of(const Lanes& lanes) {
    float buffer[kLanes];
    store(buffer, lanes);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) buffer[i] = buffer[i + width] > buffer[i] ? buffer[i + width] : buffer[i];
    return buffer[0];
}

inline float exponential_of(float x) { return exponential(all_lanes(x))[0]; }

// Softmax of one head, as far as its tiles have come.
struct Softmax {
    float most = kLowest;
    float total = 0.0f;

    // A tile's scores become weights, 0 from `keys` on. What earlier tiles made is to be multiplied by what it returns.
    float add(float* scores, int64_t keys) {
        for (int64_t k = keys; k < kKeyTile; ++k) scores[k] = kLowest;
        Lanes high;
        for (int r = 0; r < kRegisters; ++r) high.part[r] = all_lanes(most);
        for (int64_t k = 0; k < kKeyTile; k += kLanes) {
            const Lanes now = load(scores + k);
            for (int r = 0; r < kRegisters; ++r) high.part[r] = now.part[r] > high.part[r] ? now.part[r] : high.part[r];
        }
        const float before = most;
        most = largest_of(high);
        for (int64_t k = 0; k < kKeyTile; k += kLanes) {
            Lanes lanes = load(scores + k);
            for (int r = 0; r < kRegisters; ++r) lanes.part[r] = exponential(lanes.part[r] - most);
            store(scores + k, lanes);
        }
        for (int64_t k = keys; k < kKeyTile; ++k) scores[k] = 0.0f;
        Lanes weights = {};
        for (int64_t k = 0; k < kKeyTile; k += kLanes) {
            const Lanes lanes = load(scores + k);
            for (int r = 0; r < kRegisters; ++r) weights.part[r] += lanes.part[r];
        }
        const float shrink = most > before ? exponential_of(before - most) : 1.0f;
        total = total * shrink + sum(weights);
        return shrink;
    }
};

// to[m] += the sum over keys of scores[m] times V times sixteen columns of the rows.
template <int M, int V, typename Access>
inline void mix(const float* scores, const float* const* rows, int64_t keys, int64_t column, float* to, int64_t stride,
                const Access& access) {
    Lanes total[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) total[m][v] = access.load(to + m * stride + v * kLanes);
    for (int64_t k = 0; k < keys; ++k) {
        Lanes row[V];
        for (int v = 0; v < V; ++v) row[v] = access.load(rows[k] + column + v * kLanes);
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < V; ++v) add_product(total[m][v], row[v], scores[m * kKeyTile + k]);
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) access.store(to + m * stride + v * kLanes, total[m][v]);
}

// Heads [first, first + count) of one token over everything up to its position.
inline void attend(const DecodeAttention& a, int64_t token, int64_t first, int64_t count) {
    const DecodeShape& s = a.args.shape;
    const int64_t width = a.width();
    const float* queries = a.queries + a.place(token, first) * width;
    float* latents = a.latents + a.place(token, first) * s.latent;
    for (int64_t i = 0; i < count * s.latent; ++i) latents[i] = 0.0f;
    Softmax softmax[kTaskHeads];
    float scores[kTaskHeads][kKeyTile];
    const int64_t context = a.args.positions[token] + 1;
    const int64_t* blocks = a.args.tables + a.args.sequences[token] * a.args.table_width;
    int64_t offset = 0;  // in *blocks
    for (int64_t tile = 0; tile < context; tile += kKeyTile) {
        const int64_t keys = context - tile < kKeyTile ? context - tile : kKeyTile;
        const float* rows[kKeyTile];
        for (int64_t k = 0; k < keys; ++k) {
            rows[k] = a.layer.cache + (*blocks * s.block_size + offset) * width;
            if (++offset == s.block_size) ++blocks, offset = 0;
        }
        for (int64_t i = 0; i < count; i += kScoredHeads)
            all_dots<Streamed::mates>(
                queries + i * width, width, count - i < kScoredHeads ? count - i : kScoredHeads, keys, width,
                [&](int64_t k) { return rows[k]; },
                [&](int64_t j, int64_t k, float product) { scores[i + j][k] = product * s.softmax_scale; });
        for (int64_t i = 0; i < count; ++i) {
            const float shrink = softmax[i].add(scores[i], keys);
            if (tile > 0 && shrink != 1.0f)
                for (int64_t c = 0; c < s.latent; ++c) latents[i * s.latent + c] *= shrink;
        }
        const auto mix_heads = [&](int64_t column, auto num_lanes, auto access) {
            for (int64_t i = 0; i < count; i += kMixedHeads)
                as_constant<kMixedHeads>(count - i, [&](auto num_heads) {
                    mix<decltype(num_heads)::value, decltype(num_lanes)::value>(
                        scores[i], rows, keys, column, latents + i * s.latent + column, s.latent, access);
                });
        };
        int64_t column = 0;
        for (; column + kMixedLanes * kLanes <= s.latent; column += kMixedLanes * kLanes)
            mix_heads(column, Constant<kMixedLanes>{}, WholeLanes{});
        for_lanes(s.latent - column, [&](int64_t i, auto access) { mix_heads(column + i, Constant<1>{}, access); });
    }
    for (int64_t i = 0; i < count; ++i) {
        const float total = softmax[i].total;
        for (int64_t c = 0; c < s.latent; ++c) latents[i * s.latent + c] /= total;
    }
}

}  // namespace
}  // namespace openk2
