// All layers of a model with packed matrices, for tokens that were generated: one call a step.
#pragma once

#include <stdint.h>

#include "packed.hpp"

namespace openk2 {

// One layer's weights. Vectors are float32; kv_b is bfloat16; the rest is packed.
struct DecodeLayer {
    const float* input_norm;   // (hidden,)
    PackedStack q_a;           // count 0: the query has no low rank, and q_b takes the hidden state
    const float* q_a_norm;     // (q_a.rows,)
    PackedStack q_b;           // (heads * (nope + rope), q_a.rows or hidden)
    PackedStack kv_a;          // (latent + rope, hidden)
    const float* kv_a_norm;    // (latent,)
    const uint16_t* kv_b;      // (heads, nope + value, latent)
    PackedStack o;             // (hidden, heads * value)
    const float* post_norm;    // (hidden,)
    const float* router;       // (experts, hidden); null: a dense layer, whose MLP is `gate_up` and `down` of one expert
    const float* router_bias;  // (experts,) or null
    PackedStack gate_up;       // (2 experts, width, hidden)
    PackedStack down;          // (experts, hidden, width)
    PackedStack shared_gate_up;  // count 0: none
    PackedStack shared_down;
    float* cache;              // (slots, latent + rope)
};

struct DecodeShape {
    int64_t hidden, heads, nope, rope, value, latent;
    int64_t topk, groups, kept_groups;
    bool sigmoid;         // scores of the router; else softmax
    bool top2_of_groups;  // a group's score is the sum of its two largest; else its largest
    bool normalize;       // the chosen weights
    float routed_scale, softmax_scale, norm_eps, latent_norm_eps;
    int64_t block_size;
};

// Routed experts that are not in their layers (whose `gate_up` and `down` then only tell how many there are). `hold`
// brings the experts `ids` of those pairs whose weight is not 0 into slots of these stacks, and writes the slot of each
// over its number; x (tokens, hidden) is what they are for. False: it could not, and the step ends there.
struct ExpertSlots {
    bool (*hold)(void* owner, int64_t layer, int64_t* ids, const float* weights, const float* x, int64_t tokens);
    void* owner;
    PackedStack gate_up;
    PackedStack down;
};

// How many of its experts each token takes: the fewest, from `least` to `most`, whose weights have the share `mass` of
// those of all.
struct ExpertBudgets {
    const int64_t* least;  // (tokens,), at least 1
    const int64_t* most;   // (tokens,), from `least` on
    const double* mass;    // (tokens,), 0 to 1
    int64_t* taken;        // (layers, tokens), out: how many they were, in layers with experts
};

// `tokens` tokens, those of one sequence in order. Scratch: decode_scratch bytes.
struct DecodeLayers {
    const DecodeShape& shape;
    const DecodeLayer* layers;
    int64_t num_layers;
    int64_t tokens;
    float* h;                  // (tokens, hidden), in and out
    const float* cos;          // (tokens, rope / 2)
    const float* sin;
    const int64_t* positions;  // (tokens,)
    const int64_t* slots;      // (tokens,): where each token's latent goes
    const int64_t* sequences;  // (tokens,): row of `tables`
    const int64_t* tables;     // (sequences, table_width): blocks of the cache
    int64_t table_width;
    const ExpertBudgets* budgets;  // null: every token takes `topk` experts
    const ExpertSlots* stored;  // null: the experts are in the layers
    uint8_t* scratch;
};

namespace {  // one copy per translation unit: each is compiled for its own instruction set

constexpr int64_t kTaskHeads = 16;  // heads of one task, at most: they share what it has read of the cache

inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t linear_scratch(const DecodeLayers& args, const PackedStack& weight) {
    return weight.count ? activation_bytes(weight.format, args.tokens, weight.cols) : 0;
}

inline int64_t experts_scratch(const DecodeLayers& args, const PackedStack& gate_up, const PackedStack& down,
                               int64_t topk) {
    PackedExperts experts = {};
    experts.gate_up = gate_up;
    experts.down = down;
    experts.tokens = args.tokens;
    experts.topk = topk;
    return down.count ? packed_experts_scratch(experts) : 0;
}

// What the largest of a layer's products needs.
inline int64_t product_scratch(const DecodeLayers& args) {
    int64_t most = 0;
    for (int64_t i = 0; i < args.num_layers; ++i) {
        const DecodeLayer& layer = args.layers[i];
        const PackedStack* weights[] = {&layer.q_a, &layer.q_b, &layer.kv_a, &layer.o};
        for (const PackedStack* weight : weights) most = largest(most, linear_scratch(args, *weight));
        most = largest(most, experts_scratch(args, layer.gate_up, layer.down, layer.router ? args.shape.topk : 1));
        most = largest(most, experts_scratch(args, layer.shared_gate_up, layer.shared_down, 1));
    }
    if (args.stored)
        most = largest(most, experts_scratch(args, args.stored->gate_up, args.stored->down, args.shape.topk));
    return most;
}

inline int64_t most_experts(const DecodeLayers& args) {
    int64_t most = 1;
    for (int64_t i = 0; i < args.num_layers; ++i) most = largest(most, args.layers[i].down.count);
    return most;
}

inline int64_t most_query_rank(const DecodeLayers& args) {
    int64_t most = 1;
    for (int64_t i = 0; i < args.num_layers; ++i) most = largest(most, args.layers[i].q_a.rows);
    return most;
}

inline int64_t decode_scratch(const DecodeLayers& args) {
    const DecodeShape& s = args.shape;
    const int64_t tokens = args.tokens;
    return 3 * padded(tokens * s.hidden * 4) + padded(tokens * most_query_rank(args) * 4) +
           padded(tokens * s.heads * (s.nope + s.rope) * 4) + padded(tokens * (s.latent + s.rope) * 4) +
           padded(tokens * s.heads * s.value * 4) + 2 * padded(tokens * most_experts(args) * 4) +
           2 * padded(tokens * largest(s.topk, 1) * 8) + padded(tokens * s.heads * (s.latent + s.rope) * 4) +
           padded(tokens * s.heads * s.latent * 4) + product_scratch(args);
}

}  // namespace
}  // namespace openk2
