// Expanded attention of prompts, online over blocks of keys (FlashAttention-2, arXiv:2307.08691, with the blocks outside
// and the queries inside, so that a block is expanded once for all of them).
//
// Lanes are queries: scores, their largest and their sums need no step across lanes, and a query is alone in its lane.
// Blocks and tiles begin at multiples of their size in the sequence, and sums run in the order of the positions. So what
// a token gets depends on its sequence up to it, and neither on the chunk nor on the batch or the threads. Products are
// fused with their sums (CMakeLists.txt), in every instruction set that can: all but x86's portable one.
#include "prompt_attention.hpp"

#include "common/exponential.hpp"
#include "common/product.hpp"
#include "common/thread_pool.hpp"

namespace openk2::OPENK2_ISA {
namespace {

constexpr float kLowest = -3.0e38f;
constexpr int kTileRegisters = kQueryTile / kWidth;

struct Worker {
    float* weights;   // (columns / 32, latent, 32): the head's part of kv_b, its rows as columns
    float* rows;      // (kKeyBlock, latent + rope): as cached
    float* expanded;  // (kKeyBlock, columns): k_nope, then the value
    float* scores;    // (kKeyBlock, kQueryTile)
    float* tiles;
};

Worker worker_at(const PromptAttention& a, int64_t number) {
    const int64_t columns = expanded_columns(a);
    Worker w = {};
    w.weights = reinterpret_cast<float*>(a.scratch) + number * worker_floats(a);
    w.rows = w.weights + columns * a.latent;
    w.expanded = w.rows + kKeyBlock * (a.latent + a.rope);
    w.scores = w.expanded + kKeyBlock * columns;
    w.tiles = w.scores + kKeyBlock * kQueryTile;
    return w;
}

struct Tile {
    float* query;   // (nope + rope, 32), scaled
    float* out;     // (value, 32)
    float* most;    // (32,)
    float* total;   // (32,)
    int64_t position;     // of its first lane
    int64_t first, last;  // positions in it that the span has, the last excluded
};

// One head of tiles [begin, end) of a span, counted from the one that its first token is in.
struct Unit {
    const PromptSpan* span;
    int64_t head, begin, end;
};

Unit unit_at(const PromptAttention& a, int64_t number) {
    const PromptSpan* span = a.spans;
    for (;; ++span) {
        const int64_t size = tiles_per_unit(a, *span), tiles = query_tiles(*span), units = a.heads * ceil_div(tiles, size);
        if (number < units) {
            const int64_t begin = number / a.heads * size;
            return {span, number % a.heads, begin, begin + size < tiles ? begin + size : tiles};
        }
        number -= units;
    }
}

Tile tile_at(const PromptAttention& a, const Worker& w, const Unit& unit, int64_t number) {
    const PromptSpan& span = *unit.span;
    Tile t = {};
    t.query = w.tiles + (number - unit.begin) * tile_floats(a);
    t.out = t.query + (a.nope + a.rope) * kQueryTile;
    t.most = t.out + a.value * kQueryTile;
    t.total = t.most + kQueryTile;
    t.position = (span.position / kQueryTile + number) * kQueryTile;
    const int64_t end = span.position + span.tokens;
    t.first = span.position > t.position ? span.position : t.position;
    t.last = end < t.position + kQueryTile ? end : t.position + kQueryTile;
    return t;
}

void clear(float* at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) at[i] = 0.0f;
}

template <typename T>
void put_weights(const PromptAttention& a, int64_t head, float* to) {
    const int64_t rows = a.nope + a.value;
    const T* from = static_cast<const T*>(a.kv_b) + head * rows * a.latent;
    for (int64_t j = 0; j < rows; j += kQueryTile, to += a.latent * kQueryTile) {
        const int64_t count = rows - j < kQueryTile ? rows - j : kQueryTile;
        if (count < kQueryTile) clear(to, a.latent * kQueryTile);
        transpose(from + j * a.latent, a.latent, count, a.latent, to, kQueryTile);
    }
}

template <typename T>
void put_query(const PromptAttention& a, const Unit& unit, const Tile& t) {
    const int64_t lane = t.first - t.position, tokens = t.last - t.first, floats = (a.nope + a.rope) * kQueryTile;
    const int64_t row = unit.span->row + t.first - unit.span->position;
    if (tokens < kQueryTile) clear(t.query, floats);
    transpose(static_cast<const T*>(a.q_nope) + row * a.nope_row + unit.head * a.nope_head, a.nope_row, tokens, a.nope,
              t.query + lane, kQueryTile);
    transpose(static_cast<const T*>(a.q_rope) + row * a.rope_row + unit.head * a.rope_head, a.rope_row, tokens, a.rope,
              t.query + a.nope * kQueryTile + lane, kQueryTile);
    for (int64_t i = 0; i < floats; ++i) t.query[i] *= a.scale;
    clear(t.out, (a.value + 2) * kQueryTile);
    for (int64_t i = 0; i < kQueryTile; ++i) t.most[i] = kLowest;
}

// The cached rows of `count` positions from `position` on, and rows of zeros up to `padded`.
template <typename T>
void put_rows(const PromptAttention& a, const PromptSpan& span, int64_t position, int64_t count, int64_t padded,
              float* to) {
    const int64_t width = a.latent + a.rope;
    const int64_t* blocks = a.tables + span.table * a.table_width;
    for (int64_t k = 0; k < count; ++k) {
        const int64_t at = position + k;
        const T* from =
            static_cast<const T*>(a.cache) + (blocks[at / a.block_size] * a.block_size + at % a.block_size) * width;
        for (int64_t c = 0; c < width; ++c) convert(from[c], to + k * width + c);
    }
    clear(to + count * width, (padded - count) * width);
}

inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }

// Scores of `keys` keys from `position` on become probabilities, relative to each query's largest score so far; what was
// summed before is brought to the same measure. `masked`: some queries are before some of the keys.
template <bool masked>
void weigh(const PromptAttention& a, const Tile& t, float* scores, int64_t keys, int64_t position) {
    for (int r = 0; r < kTileRegisters; ++r) {
        U32 query;
        for (int l = 0; l < kWidth; ++l) query[l] = static_cast<uint32_t>(t.position - position + r * kWidth + l);
        float* lanes = scores + r * kWidth;
        const F32 before = load_part(t.most + r * kWidth);
        F32 most = before;
        for (int64_t k = 0; k < keys; ++k) {
            const F32 score = load_part(lanes + k * kQueryTile);
            if constexpr (masked)
                most = (U32{} + static_cast<uint32_t>(k)) > query ? most : larger(score, most);
            else
                most = larger(score, most);
        }
        store_part(t.most + r * kWidth, most);
        const F32 shrink = exponential(before - most);
        F32 total = load_part(t.total + r * kWidth) * shrink;
        for (int64_t k = 0; k < keys; ++k) {
            F32 p = exponential(load_part(lanes + k * kQueryTile) - most);
            if constexpr (masked) p = (U32{} + static_cast<uint32_t>(k)) > query ? F32{} : p;
            store_part(lanes + k * kQueryTile, p);
            total += p;
        }
        store_part(t.total + r * kWidth, total);
        for (int64_t v = 0; v < a.value; ++v) {
            float* out = t.out + v * kQueryTile + r * kWidth;
            store_part(out, load_part(out) * shrink);
        }
    }
}

template <typename T>
void finish(const PromptAttention& a, const Unit& unit, const Tile& t) {
    for (int64_t v = 0; v < a.value; ++v)
        for (int r = 0; r < kTileRegisters; ++r) {
            float* out = t.out + v * kQueryTile + r * kWidth;
            store_part(out, load_part(out) / load_part(t.total + r * kWidth));
        }
    const int64_t row = unit.span->row + t.first - unit.span->position;
    transpose(t.out + t.first - t.position, kQueryTile, a.value, t.last - t.first,
              static_cast<T*>(a.out) + (row * a.heads + unit.head) * a.value, a.heads * a.value);
}

template <typename T>
void run_unit(const PromptAttention& a, const Worker& w, const Unit& unit) {
    const int64_t columns = expanded_columns(a), width = a.latent + a.rope;
    put_weights<T>(a, unit.head, w.weights);
    for (int64_t i = unit.begin; i < unit.end; ++i) put_query<T>(a, unit, tile_at(a, w, unit, i));
    const int64_t end = tile_at(a, w, unit, unit.end - 1).last;
    for (int64_t block = 0; block < end; block += kKeyBlock) {
        const int64_t count = end - block < kKeyBlock ? end - block : kKeyBlock, padded = round_up(count, kRows);
        put_rows<T>(a, *unit.span, block, count, padded, w.rows);
        for (int64_t j = 0; j < columns; j += kQueryTile)
            product<false>(w.rows, width, 1, w.weights + j * a.latent, kQueryTile, w.expanded + j, columns, padded,
                           kQueryTile, a.latent);
        for (int64_t i = unit.begin; i < unit.end; ++i) {
            const Tile t = tile_at(a, w, unit, i);
            if (t.last <= block) continue;
            const int64_t keys = t.last - block < padded ? round_up(t.last - block, kRows) : padded;
            product<false>(w.expanded, columns, 1, t.query, kQueryTile, w.scores, kQueryTile, keys, kQueryTile, a.nope);
            product<true>(w.rows + a.latent, width, 1, t.query + a.nope * kQueryTile, kQueryTile, w.scores, kQueryTile,
                          keys, kQueryTile, a.rope);
            if (block + keys > t.position + 1)
                weigh<true>(a, t, w.scores, keys, block);
            else
                weigh<false>(a, t, w.scores, keys, block);
            product<true>(w.expanded + a.nope, 1, columns, w.scores, kQueryTile, t.out, kQueryTile, a.value, kQueryTile,
                          keys);
        }
    }
    for (int64_t i = unit.begin; i < unit.end; ++i) finish<T>(a, unit, tile_at(a, w, unit, i));
}

}  // namespace

void prompt_attention(const PromptAttention& a) {
    int64_t units = 0, next = 0;
    for (int64_t s = 0; s < a.num_spans; ++s)
        units += a.heads * ceil_div(query_tiles(a.spans[s]), tiles_per_unit(a, a.spans[s]));
    parallel_for(a.workers, [&](int64_t number) {
        const Worker w = worker_at(a, number);
        for (int64_t unit; (unit = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < units;)
            a.is_bf16 ? run_unit<bf16>(a, w, unit_at(a, unit)) : run_unit<float>(a, w, unit_at(a, unit));
    });
}

}  // namespace openk2::OPENK2_ISA
