// The experts of a MoE layer over packed matrices; the definition is openk2/ops/reference/packed.py.
//
// The (token, expert) pairs are grouped by expert, so that a matrix is read once for all its tokens. A task of the
// first half makes 32 columns of the hidden state, which is one group of its quantisation: it quantises them at once.
#include "common/packed_tile.hpp"
#include "common/thread_pool.hpp"

namespace openk2::OPENK2_ISA {
namespace {

constexpr int64_t kTilesPerTask = 4;

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

    const int64_t in_tile = tile_bytes(args.gate_up), in_matrix = matrix_bytes(args.gate_up);
    const int64_t blocks = groups.num_chosen + ceil_div(args.tokens * topk, kRowBlock);  // readings of a matrix, at most
    parallel_for(groups.num_chosen * h.groups, 2 * blocks * in_matrix, [&](int64_t task) {
        const int64_t expert = groups.chosen[task / h.groups], group = task % h.groups;
        const int64_t columns = width - group * kGroup < kGroup ? width - group * kGroup : kGroup;
        const uint8_t* gate = args.gate_up.data + 2 * expert * in_matrix + 2 * group * in_tile;
        const uint8_t* up = gate + in_matrix;
        for (int64_t p = groups.begins[expert]; p < groups.begins[expert + 1]; p += kRowBlock) {
            const int64_t left = groups.begins[expert + 1] - p;
            const int count = left < kRowBlock ? static_cast<int>(left) : kRowBlock;
            int64_t rows[kRowBlock] = {};
            for (int m = 0; m < count; ++m) rows[m] = groups.pairs[p + m] / topk;
            float made[kRowBlock][kGroup];
            for (int half = 0; half * kTileRows < columns; ++half) {
                Lanes gates[kRowBlock], ups[kRowBlock];
                tile_products<format>(gate + half * in_tile, x, rows, count, gates);
                tile_products<format>(up + half * in_tile, x, rows, count, ups);
                for (int m = 0; m < count; ++m) store(made[m] + half * kTileRows, silu_mul(gates[m], ups[m]));
            }
            for (int m = 0; m < count; ++m) put_group(h, groups.pairs[p + m], group, made[m], columns);
        }
    });

    const int64_t tiles = ceil_div(hidden, kTileRows), per_expert = ceil_div(tiles, kTilesPerTask);
    const int64_t out_tile = tile_bytes(args.down), out_matrix = matrix_bytes(args.down);
    parallel_for(groups.num_chosen * per_expert, blocks * out_matrix, [&](int64_t task) {
        const int64_t expert = groups.chosen[task / per_expert], first = task % per_expert * kTilesPerTask;
        const int64_t end = first + kTilesPerTask < tiles ? first + kTilesPerTask : tiles;
        for (int64_t tile = first; tile < end; ++tile)
            for (int64_t p = groups.begins[expert]; p < groups.begins[expert + 1]; p += kRowBlock) {
                const int64_t left = groups.begins[expert + 1] - p;
                const int count = left < kRowBlock ? static_cast<int>(left) : kRowBlock;
                int64_t rows[kRowBlock] = {};
                for (int m = 0; m < count; ++m) rows[m] = groups.pairs[p + m];
                Lanes out[kRowBlock];
                tile_products<format>(args.down.data + expert * out_matrix + tile * out_tile, h, rows, count, out);
                for (int m = 0; m < count; ++m)
                    store_columns(y + rows[m] * hidden + tile * kTileRows, out[m], hidden - tile * kTileRows);
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
