// The experts of a MoE layer over packed matrices; the definition is openk2/ops/reference/packed.py.
//
// The (token, expert) pairs are grouped by expert, so that a matrix is read once for all its tokens. A task of the
// first half makes 32 columns of the hidden state, which is one group of its quantisation: it quantises them at once.
#include "common/packed_tile.hpp"
#include "common/thread_pool.hpp"

namespace openk2::OPENK2_ISA {
namespace {

struct Groups {
    int32_t* begins;   // (experts + 1): where an expert's pairs begin in `pairs`
    int32_t* pairs;    // pair numbers (token * topk + k), by expert
    int32_t* chosen;   // the experts that have pairs
    int64_t num_chosen;
};

Groups group_pairs(const PackedExperts& args, uint8_t*& scratch) {
    const int64_t pairs = args.tokens * args.topk, experts = args.down.count;
    Groups g = {};
    g.begins = reinterpret_cast<int32_t*>(scratch);
    scratch += padded((experts + 1) * 4);
    g.pairs = reinterpret_cast<int32_t*>(scratch);
    scratch += padded(pairs * 4);
    g.chosen = reinterpret_cast<int32_t*>(scratch);
    scratch += padded(experts * 4);
    for (int64_t e = 0; e <= experts; ++e) g.begins[e] = 0;
    for (int64_t p = 0; p < pairs; ++p)
        if (args.weights[p] != 0.0f) ++g.begins[args.ids[p]];
    int32_t end = 0;
    for (int64_t e = 0; e < experts; ++e) {
        if (g.begins[e]) g.chosen[g.num_chosen++] = static_cast<int32_t>(e);
        end += g.begins[e];
        g.begins[e] = end;
    }
    g.begins[experts] = end;
    for (int64_t p = pairs - 1; p >= 0; --p)  // backwards: each begin comes down to where it belongs
        if (args.weights[p] != 0.0f) g.pairs[--g.begins[args.ids[p]]] = static_cast<int32_t>(p);
    return g;
}

template <PackedFormat format>
void run_experts(const PackedExperts& args) {
    const int64_t hidden = args.gate_up.cols, width = args.gate_up.rows, topk = args.topk;
    uint8_t* scratch = args.scratch;
    const Activations x = activations_at(scratch, format, args.tokens, hidden);
    const Activations h = activations_at(scratch, format, args.tokens * topk, width);
    float* y = reinterpret_cast<float*>(scratch);
    scratch += padded(args.tokens * topk * hidden * 4);
    const Groups groups = group_pairs(args, scratch);
    parallel_for(args.tokens, args.tokens * hidden * 4, [&](int64_t row) { put_row(x, row, args.x + row * hidden, hidden); });

    const bool in_order = num_threads() == 1;  // so that the next task is known
    const int64_t in_tile = tile_bytes(args.gate_up), in_matrix = matrix_bytes(args.gate_up);
    const int64_t blocks = groups.num_chosen + ceil_div(args.tokens * topk, kRowBlock);  // readings of a matrix, at most
    const auto gate_at = [&](int64_t task) {
        return args.gate_up.data + 2 * groups.chosen[task / h.groups] * in_matrix + 2 * (task % h.groups) * in_tile;
    };
    const int64_t in_tasks = groups.num_chosen * h.groups;
    parallel_for(in_tasks, 2 * blocks * in_matrix, [&](int64_t task) {
        const int64_t expert = groups.chosen[task / h.groups], group = task % h.groups;
        const int64_t columns = width - group * kGroup < kGroup ? width - group * kGroup : kGroup;
        const uint8_t *gate = gate_at(task), *up = gate + in_matrix;
        const int64_t advance = in_order && task + 1 < in_tasks ? gate_at(task + 1) - gate : 0;
        for (int64_t p = groups.begins[expert]; p < groups.begins[expert + 1]; p += kRowBlock) {
            const int64_t left = groups.begins[expert + 1] - p;
            const int count = left < kRowBlock ? static_cast<int>(left) : kRowBlock;
            int64_t rows[kRowBlock] = {};
            for (int m = 0; m < count; ++m) rows[m] = groups.pairs[p + m] / topk;
            const uint8_t* tiles[] = {gate, up, gate + in_tile, up + in_tile};
            const int halves = columns > kTileRows ? 2 : 1;
            Lanes out[kMostTiles][kRowBlock];
            tile_products<format>(tiles, 2 * halves, advance, x, rows, count, out);
            float made[kRowBlock][kGroup];
            for (int half = 0; half < halves; ++half)
                for (int m = 0; m < count; ++m)
                    store(made[m] + half * kTileRows, silu_mul(out[2 * half][m], out[2 * half + 1][m]));
            for (int m = 0; m < count; ++m) put_group(h, groups.pairs[p + m], group, made[m], columns);
        }
    });

    const int64_t tiles = ceil_div(hidden, kTileRows), per_expert = ceil_div(tiles, kMostTiles);
    const int64_t out_tile = tile_bytes(args.down), out_matrix = matrix_bytes(args.down);
    const auto down_at = [&](int64_t task) {
        const int64_t first = task % per_expert * kMostTiles;
        return args.down.data + groups.chosen[task / per_expert] * out_matrix + first * out_tile;
    };
    const int64_t out_tasks = groups.num_chosen * per_expert;
    parallel_for(out_tasks, blocks * out_matrix, [&](int64_t task) {
        const int64_t expert = groups.chosen[task / per_expert], first = task % per_expert * kMostTiles;
        const int num_tiles = tiles - first < kMostTiles ? static_cast<int>(tiles - first) : kMostTiles;
        const uint8_t* at[kMostTiles];
        for (int t = 0; t < num_tiles; ++t) at[t] = down_at(task) + t * out_tile;
        const int64_t advance = in_order && task + 1 < out_tasks ? down_at(task + 1) - at[0] : 0;
        for (int64_t p = groups.begins[expert]; p < groups.begins[expert + 1]; p += kRowBlock) {
            const int64_t left = groups.begins[expert + 1] - p;
            const int count = left < kRowBlock ? static_cast<int>(left) : kRowBlock;
            int64_t rows[kRowBlock] = {};
            for (int m = 0; m < count; ++m) rows[m] = groups.pairs[p + m];
            Lanes out[kMostTiles][kRowBlock];
            tile_products<format>(at, num_tiles, advance, h, rows, count, out);
            for (int t = 0; t < num_tiles; ++t) {
                const int64_t column = (first + t) * kTileRows;
                for (int m = 0; m < count; ++m)
                    store_columns(y + rows[m] * hidden + column, out[t][m], hidden - column);
            }
        }
    });

    parallel_for(args.tokens, args.tokens * topk * hidden * 4, [&](int64_t token) {
        float* out = args.out + token * hidden;
        for (int64_t i = 0; i < hidden; ++i) out[i] = 0.0f;
        for (int64_t k = 0; k < topk; ++k) {
            const float weight = args.weights[token * topk + k];
            const float* from = y + (token * topk + k) * hidden;
            if (weight != 0.0f)
                for (int64_t i = 0; i < hidden; ++i) out[i] += from[i] * weight;
        }
    });
}

}  // namespace

void packed_experts(const PackedExperts& args) {
    switch (args.down.format) {
        case PackedFormat::bf16: return run_experts<PackedFormat::bf16>(args);
        case PackedFormat::int8: return run_experts<PackedFormat::int8>(args);
        case PackedFormat::int4: return run_experts<PackedFormat::int4>(args);
    }
}

}  // namespace openk2::OPENK2_ISA
