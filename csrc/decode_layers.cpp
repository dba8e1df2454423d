// The layers of a decode step; the definition is the model itself (openk2/models), module by module.
//
// Everything is a function of one token and what its sequence has in the cache, in an order of sums that its position
// fixes: neither batch mates, nor threads, nor the instruction set change a bit. Products are `packed_linear` and
// `packed_experts` themselves.
#include "decode_layers.hpp"

#include "common/packed_tile.hpp"
#include "common/thread_pool.hpp"
#include "decode_attention.hpp"
#include "rms_norm.hpp"

namespace openk2::OPENK2_ISA {

void packed_linear(const PackedLinear& args);
void packed_experts(const PackedExperts& args);
void rms_norm(const RmsNorm& args);

namespace {

constexpr int64_t kRouterRows = 16;  // experts of one task

struct Buffers {
    float* normed;   // (tokens, hidden)
    float* made;     // (tokens, hidden)
    float* shared;   // (tokens, hidden)
    float* q_a;      // (tokens, rank)
    float* q;        // (tokens, heads, nope + rope)
    float* kv;       // (tokens, latent + rope)
    float* mixed;    // (tokens, heads, value)
    float* scores;   // (tokens, experts)
    float* choice;   // (tokens, experts)
    int64_t* ids;    // (tokens, topk)
    float* weights;  // (tokens, topk)
    float* queries;  // (tokens, heads, latent + rope)
    float* latents;  // (tokens, heads, latent)
    uint8_t* product;
};

template <typename T>
T* take(uint8_t*& at, int64_t bytes) {
    T* taken = reinterpret_cast<T*>(at);
    at += padded(bytes);
    return taken;
}

Buffers buffers_of(const DecodeLayers& args) {
    const DecodeShape& s = args.shape;
    const int64_t tokens = args.tokens, experts = most_experts(args), topk = largest(s.topk, 1);
    uint8_t* at = args.scratch;
    Buffers b = {};
    b.normed = take<float>(at, tokens * s.hidden * 4);
    b.made = take<float>(at, tokens * s.hidden * 4);
    b.shared = take<float>(at, tokens * s.hidden * 4);
    b.q_a = take<float>(at, tokens * most_query_rank(args) * 4);
    b.q = take<float>(at, tokens * s.heads * (s.nope + s.rope) * 4);
    b.kv = take<float>(at, tokens * (s.latent + s.rope) * 4);
    b.mixed = take<float>(at, tokens * s.heads * s.value * 4);
    b.scores = take<float>(at, tokens * experts * 4);
    b.choice = take<float>(at, tokens * experts * 4);
    b.ids = take<int64_t>(at, tokens * topk * 8);
    b.weights = take<float>(at, tokens * topk * 8);
    b.queries = take<float>(at, tokens * s.heads * (s.latent + s.rope) * 4);
    b.latents = take<float>(at, tokens * s.heads * s.latent * 4);
    b.product = at;
    return b;
}

void norm(const float* x, const float* weight, float* out, int64_t rows, int64_t cols, float eps) {
    rms_norm({x, weight, out, rows, cols, eps, false});
}

void multiply(const DecodeLayers& args, const Buffers& b, const float* x, const PackedStack& weight, float* out) {
    packed_linear({x, weight, out, b.product, args.tokens});
}

void add(float* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// Pair i is (2i, 2i + 1).
void rotate(float* x, const float* cos, const float* sin, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cos[i] - odd * sin[i];
        x[2 * i + 1] = odd * cos[i] + even * sin[i];
    }
}

void attend_all(const DecodeAttention& a) {
    const DecodeShape& s = a.args.shape;
    const int64_t tokens = a.args.tokens;
    parallel_for(s.heads, s.heads * s.nope * s.latent * 2, [&](int64_t head) { absorb(a, head); });
    // Many heads read what is cached once for all of them; several threads need several tasks.
    const int64_t per_task = tokens * s.heads < num_threads() * kTaskHeads ? kTaskHeads / 2 : kTaskHeads;
    const int64_t head_tasks = ceil_div(s.heads, per_task);
    int64_t read = 0;
    for (int64_t t = 0; t < tokens; ++t) read += (a.args.positions[t] + 1) * s.heads * a.width() * 4;
    parallel_for(tokens * head_tasks, read, [&](int64_t task) {
        const int64_t first = task % head_tasks * per_task;
        attend(a, task / head_tasks, first, s.heads - first < per_task ? s.heads - first : per_task);
    });
    parallel_for(s.heads, s.heads * s.value * s.latent * 2, [&](int64_t head) { expand(a, head); });
}

// h += attention(norm(h)), and the tokens' latents into the cache.
void attention(const DecodeLayers& args, const DecodeLayer& layer, const Buffers& b) {
    const DecodeShape& s = args.shape;
    const int64_t tokens = args.tokens, pairs = s.rope / 2, width = s.latent + s.rope;
    norm(args.h, layer.input_norm, b.normed, tokens, s.hidden, s.norm_eps);
    const float* query_input = b.normed;
    if (layer.q_a.count) {
        multiply(args, b, b.normed, layer.q_a, b.q_a);
        norm(b.q_a, layer.q_a_norm, b.q_a, tokens, layer.q_a.rows, s.latent_norm_eps);
        query_input = b.q_a;
    }
    multiply(args, b, query_input, layer.q_b, b.q);
    multiply(args, b, b.normed, layer.kv_a, b.kv);
    for (int64_t t = 0; t < tokens; ++t) {
        const float *cos = args.cos + t * pairs, *sin = args.sin + t * pairs;
        for (int64_t h = 0; h < s.heads; ++h)
            rotate(b.q + (t * s.heads + h) * (s.nope + s.rope) + s.nope, cos, sin, pairs);
        float* kv = b.kv + t * width;
        rotate(kv + s.latent, cos, sin, pairs);
        norm(kv, layer.kv_a_norm, kv, 1, s.latent, s.latent_norm_eps);
        float* slot = layer.cache + args.slots[t] * width;
        for (int64_t i = 0; i < width; ++i) slot[i] = kv[i];
    }
    attend_all({args, layer, b.q, b.queries, b.latents, b.mixed});
    multiply(args, b, b.mixed, layer.o, b.made);
    add(args.h, b.made, tokens * s.hidden);
}

int64_t take_largest(float* values, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; ++i)
        if (values[i] > values[best]) best = i;
    return best;
}

// Leave only the best groups in the running.
void keep_groups(const DecodeShape& s, float* choice, int64_t experts) {
    constexpr int64_t kMostGroups = 64;
    const int64_t size = experts / s.groups;
    float group_scores[kMostGroups];
    for (int64_t g = 0; g < s.groups; ++g) {
        float first = kLowest, second = kLowest;
        for (int64_t i = g * size; i < (g + 1) * size; ++i) {
            if (choice[i] > first) {
                second = first;
                first = choice[i];
            } else if (choice[i] > second) {
                second = choice[i];
            }
        }
        group_scores[g] = s.top2_of_groups ? first + second : first;
    }
    bool kept[kMostGroups] = {};
    for (int64_t k = 0; k < s.kept_groups; ++k) {
        const int64_t g = take_largest(group_scores, s.groups);
        kept[g] = true;
        group_scores[g] = kLowest;
    }
    for (int64_t i = 0; i < experts; ++i)
        if (!kept[i / size]) choice[i] = kLowest;
}

// How many of the experts with these weights a token takes.
int64_t within_budget(const ExpertBudgets& budgets, int64_t token, const float* weights, int64_t topk) {
    double total = 0.0, inside = 0.0;
    for (int64_t k = 0; k < topk; ++k) total += weights[k];
    const double wanted = budgets.mass[token] * total;
    int64_t count = 0;
    while (count < topk && !(inside >= wanted)) inside += weights[count++];
    if (count < budgets.least[token]) count = budgets.least[token];
    return count < budgets.most[token] ? count : budgets.most[token];
}

// Logits of the router for all tokens.
void score_experts(const DecodeLayers& args, const DecodeLayer& layer, const Buffers& b) {
    const int64_t hidden = args.shape.hidden, experts = layer.down.count;
    parallel_for(ceil_div(experts, kRouterRows), experts * hidden * 4, [&](int64_t task) {
        const int64_t first = task * kRouterRows, left = experts - first;
        all_dots<Streamed::rows>(
            layer.router + first * hidden, hidden, left < kRouterRows ? left : kRouterRows, args.tokens, hidden,
            [&](int64_t token) { return b.normed + token * hidden; },
            [&](int64_t row, int64_t token, float logit) { b.scores[token * experts + first + row] = logit; });
    });
}

// One token's experts by its logits, strongest first, and their weights. See openk2/ops/reference/moe.py, `route`.
void route(const DecodeLayers& args, int64_t index, const Buffers& b, int64_t token) {
    const DecodeShape& s = args.shape;
    const DecodeLayer& layer = args.layers[index];
    const int64_t experts = layer.down.count;
    float *scores = b.scores + token * experts, *choice = b.choice + token * experts;
    if (s.sigmoid) {
        for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exponential_of(-scores[e]));
    } else {
        float most = kLowest, total = 0.0f;
        for (int64_t e = 0; e < experts; ++e) most = scores[e] > most ? scores[e] : most;
        for (int64_t e = 0; e < experts; ++e) total += scores[e] = exponential_of(scores[e] - most);
        for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
    }
    for (int64_t e = 0; e < experts; ++e) choice[e] = layer.router_bias ? scores[e] + layer.router_bias[e] : scores[e];
    if (s.groups > 1) keep_groups(s, choice, experts);
    int64_t* ids = b.ids + token * s.topk;
    float* weights = b.weights + token * s.topk;
    float total = 0.0f;
    for (int64_t k = 0; k < s.topk; ++k) {
        ids[k] = take_largest(choice, experts);
        choice[ids[k]] = -__builtin_inff();  // below those that their group leaves out
        weights[k] = scores[ids[k]];
        total += weights[k];
    }
    for (int64_t k = 0; k < s.topk; ++k) {
        if (s.normalize) weights[k] /= total + 1e-20f;
        weights[k] *= s.routed_scale;
    }
    if (!args.budgets) return;
    const int64_t taken = within_budget(*args.budgets, token, weights, s.topk);
    args.budgets->taken[index * args.tokens + token] = taken;
    if (taken == s.topk) return;
    float full = 0.0f, inside = 0.0f;
    for (int64_t k = 0; k < s.topk; ++k) {
        full += weights[k] * weights[k];
        if (k < taken) inside += weights[k] * weights[k];
    }
    const float gain = __builtin_sqrtf(full / inside);
    for (int64_t k = 0; k < s.topk; ++k) weights[k] = k < taken ? weights[k] * gain : 0.0f;
}

// h += FFN(norm(h)). False where its experts could not be had.
bool feed_forward(const DecodeLayers& args, int64_t index, const Buffers& b) {
    const DecodeShape& s = args.shape;
    const DecodeLayer& layer = args.layers[index];
    PackedStack gate_up = layer.gate_up, down = layer.down;
    const int64_t tokens = args.tokens;
    norm(args.h, layer.post_norm, b.normed, tokens, s.hidden, s.norm_eps);
    int64_t topk = s.topk;
    if (layer.router) {
        score_experts(args, layer, b);
        for (int64_t t = 0; t < tokens; ++t) route(args, index, b, t);
        if (const ExpertSlots* slots = args.stored) {
            if (!slots->hold(slots->owner, index, b.ids, b.weights, b.normed, tokens)) return false;
            gate_up = slots->gate_up;
            down = slots->down;
        }
    } else {
        topk = 1;
        for (int64_t t = 0; t < tokens; ++t) b.ids[t] = 0, b.weights[t] = 1.0f;
    }
    packed_experts({b.normed, b.ids, b.weights, gate_up, down, b.made, b.product, tokens, topk});
    if (layer.shared_down.count) {
        for (int64_t t = 0; t < tokens; ++t) b.ids[t] = 0, b.weights[t] = 1.0f;
        packed_experts(
            {b.normed, b.ids, b.weights, layer.shared_gate_up, layer.shared_down, b.shared, b.product, tokens, 1});
        add(b.made, b.shared, tokens * s.hidden);
    }
    add(args.h, b.made, tokens * s.hidden);
    return true;
}

}  // namespace

void decode_layers(const DecodeLayers& args) {
    const Buffers b = buffers_of(args);
    for (int64_t i = 0; i < args.num_layers; ++i) {
        attention(args, args.layers[i], b);
        if (!feed_forward(args, i, b)) return;
    }
}

}  // namespace openk2::OPENK2_ISA
