// A product with a packed matrix; the definition is openk2/ops/reference/packed.py.
//
// A task takes a few tiles and every row: a tile is read from memory once and stays in the caches while the rows go by.
// An output depends on its row and its tile alone.
#include "common/packed_tile.hpp"
#include "common/thread_pool.hpp"

namespace openk2::OPENK2_ISA {
namespace {

template <PackedFormat format>
void multiply_rows(const PackedLinear& args) {
    const PackedStack& w = args.weight;
    uint8_t* scratch = args.scratch;
    const Activations a = activations_at(scratch, format, args.tokens, w.cols);
    parallel_for(args.tokens, args.tokens * w.cols * 4, [&](int64_t row) { put_row(a, row, args.x + row * w.cols, w.cols); });
    const int64_t tiles = ceil_div(w.rows, kTileRows), bytes = tile_bytes(w);
    const int64_t advance = num_threads() == 1 && args.tokens <= kRowBlock ? kMostTiles * bytes : 0;
    const int64_t read = tiles * bytes * ceil_div(args.tokens, kRowBlock);
    parallel_for(ceil_div(tiles, kMostTiles), read, [&](int64_t task) {
        const int64_t end = (task + 1) * kMostTiles < tiles ? (task + 1) * kMostTiles : tiles;
        // One block of rows takes the tiles together; several take one after the other, which stays in the first cache.
        const int64_t aside = args.tokens > kRowBlock ? 1 : kMostTiles;
        for (int64_t tile = task * kMostTiles; tile < end; tile += aside) {
            const int num_tiles = end - tile < aside ? static_cast<int>(end - tile) : static_cast<int>(aside);
            const uint8_t* at[kMostTiles];
            for (int t = 0; t < num_tiles; ++t) at[t] = w.data + (tile + t) * bytes;
            for (int64_t row = 0; row < args.tokens; row += kRowBlock) {
                const int count = args.tokens - row < kRowBlock ? static_cast<int>(args.tokens - row) : kRowBlock;
                int64_t rows[kRowBlock];
                for (int m = 0; m < kRowBlock; ++m) rows[m] = row + m;
                Lanes out[kMostTiles][kRowBlock];
                tile_products<format>(at, num_tiles, advance, a, rows, count, out);
                for (int t = 0; t < num_tiles; ++t) {
                    const int64_t column = (tile + t) * kTileRows;
                    for (int m = 0; m < count; ++m)
                        store_columns(args.out + (row + m) * w.rows + column, out[t][m], w.rows - column);
                }
            }
        }
    });
}

}  // namespace

void packed_linear(const PackedLinear& args) {
    switch (args.weight.format) {
        case PackedFormat::bf16: return multiply_rows<PackedFormat::bf16>(args);
        case PackedFormat::int8: return multiply_rows<PackedFormat::int8>(args);
        case PackedFormat::int4: return multiply_rows<PackedFormat::int4>(args);
    }
}

}  // namespace openk2::OPENK2_ISA
