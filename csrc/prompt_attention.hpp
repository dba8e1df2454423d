// Attention of prompts' tokens to the paged latent cache, expanded; the definition is openk2/ops/reference/mla.py.
#pragma once

#include <stdint.h>

#include "packed.hpp"

namespace openk2 {

// The tokens of one sequence: rows [row, row + tokens) of the queries, at positions from `position` on.
struct PromptSpan {
    int64_t row, tokens, position;
    int64_t table;  // row of `tables`
};

// Queries, cache, weights and output are bfloat16, or all float32. The cache holds every span's tokens themselves.
struct PromptAttention {
    int64_t heads, nope, rope, value, latent, block_size;
    bool is_bf16;
    const void* q_nope;  // (rows, heads, nope), a row and a head so many elements apart:
    int64_t nope_row, nope_head;
    const void* q_rope;  // (rows, heads, rope), likewise
    int64_t rope_row, rope_head;
    const void* cache;      // (blocks, block_size, latent + rope)
    const void* kv_b;       // (heads, nope + value, latent)
    const int64_t* tables;  // (sequences, table_width): blocks of the cache
    int64_t table_width;
    const PromptSpan* spans;
    int64_t num_spans;
    float scale;
    void* out;        // (rows, heads, value)
    int64_t workers;  // that go through the work together; no bit depends on how many
    uint8_t* scratch;  // prompt_attention_scratch bytes, 64-byte aligned
};

constexpr int64_t kQueryTile = 32;  // queries side by side, at positions from a multiple of it on
constexpr int64_t kKeyBlock = 64;   // keys that are expanded together, likewise; a multiple of kQueryTile

namespace {  // one copy per translation unit: each is compiled for its own instruction set

inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }
inline int64_t expanded_columns(const PromptAttention& a) { return round_up(a.nope + a.value, kQueryTile); }

// Tiles that a span's queries lie in.
inline int64_t query_tiles(const PromptSpan& span) {
    return ceil_div(span.position + span.tokens, kQueryTile) - span.position / kQueryTile;
}

// A unit of work is one head of some of a span's tiles; heads alone are enough for few workers.
inline int64_t tiles_per_unit(const PromptAttention& a, const PromptSpan& span) {
    const int64_t tiles = query_tiles(span), groups = ceil_div(a.workers, a.heads * a.num_spans);
    return ceil_div(tiles, groups < tiles ? groups : tiles);
}

// Floats of one query tile: queries, sums over the values, and of each query its largest score and its total.
inline int64_t tile_floats(const PromptAttention& a) { return (a.nope + a.rope + a.value + 2) * kQueryTile; }

// Floats of one worker: a head's weights, keys and values of a block, as cached and expanded, scores, tiles.
inline int64_t worker_floats(const PromptAttention& a) {
    int64_t most_tiles = 0;
    for (int64_t s = 0; s < a.num_spans; ++s) {
        const int64_t tiles = tiles_per_unit(a, a.spans[s]);
        most_tiles = tiles > most_tiles ? tiles : most_tiles;
    }
    const int64_t columns = expanded_columns(a);
    return round_up(columns * a.latent + kKeyBlock * (a.latent + a.rope + columns + kQueryTile) +
                        most_tiles * tile_floats(a), 16);
}

inline int64_t prompt_attention_scratch(const PromptAttention& a) { return 4 * a.workers * worker_floats(a); }

}  // namespace
}  // namespace openk2
