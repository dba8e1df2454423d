// The layers of a decode step; the definition is the model itself (openk2/models), module by module.
//
// Everything is a function of one token and what its sequence has in the cache, in an order of sums that its position
// fixes: neither batch mates, nor threads, nor the instruction set change a bit. Products are `packed_linear` and
// `packed_experts` themselves.
#include "decode_layers.hpp"

#include "common/packed_tile.hpp"
#include "common/thread_pool.hpp"
#include "rms_norm.hpp"

namespace openk2::OPENK2_ISA {

void packed_linear(const PackedLinear& args);
void packed_experts(const PackedExperts& args);
void rms_norm(const RmsNorm& args);

namespace {

constexpr int64_t kKeyTile = 64;
constexpr int64_t kHeadBlock = 4;
constexpr float kLowest = -3.0e38f;

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
    float* attention;
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
    b.attention = take<float>(at, tokens * ceil_div(s.heads, kTaskHeads) * attention_floats(s) * 4);
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

template <typename A, typename B>
float dot(const A* a, const B* b, int64_t count) {
    Lanes total = {};
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Lanes x = load(a + i), y = load(b + i);
        for (int r = 0; r < kRegisters; ++r) total.part[r] += x.part[r] * y.part[r];
    }
    if (whole < count) {
        const Lanes x = load_some(a + whole, count - whole), y = load_some(b + whole, count - whole);
        for (int r = 0; r < kRegisters; ++r) total.part[r] += x.part[r] * y.part[r];
    }
    return sum(total);
}

// Of M rows of `a`, `count` apart, with b: M sums side by side hide the latency of an addition.
template <int M>
void dots(const float* a, const float* b, int64_t count, float* out) {
    Lanes total[M] = {};
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Lanes y = load(b + i);
        for (int m = 0; m < M; ++m) {
            const Lanes x = load(a + m * count + i);
            for (int r = 0; r < kRegisters; ++r) total[m].part[r] += x.part[r] * y.part[r];
        }
    }
    if (whole < count) {
        const Lanes y = load_some(b + whole, count - whole);
        for (int m = 0; m < M; ++m) {
            const Lanes x = load_some(a + m * count + whole, count - whole);
            for (int r = 0; r < kRegisters; ++r) total[m].part[r] += x.part[r] * y.part[r];
        }
    }
    for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

void dots(const float* a, int64_t rows, const float* b, int64_t count, float* out) {
    switch (rows) {
        case 1: return dots<1>(a, b, count, out);
        case 2: return dots<2>(a, b, count, out);
        case 3: return dots<3>(a, b, count, out);
        default: return dots<kHeadBlock>(a, b, count, out);
    }
}

// to += from * by
template <typename T>
void add_scaled(float* to, const T* from, float by, int64_t count) {
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        Lanes x = load(to + i);
        const Lanes y = load(from + i);
        for (int r = 0; r < kRegisters; ++r) x.part[r] += y.part[r] * by;
        store(to + i, x);
    }
    if (whole < count) {
        Lanes x = load_some(to + whole, count - whole);
        const Lanes y = load_some(from + whole, count - whole);
        for (int r = 0; r < kRegisters; ++r) x.part[r] += y.part[r] * by;
        store_some(to + whole, x, count - whole);
    }
}

float exponential_of(float x) {
    F32 lanes = {};
    lanes += x;
    return exponential(lanes)[0];
}

// Attention of one token's heads [first, first + count) to everything up to its position, absorbed: the keys are the
// cached latents themselves (DeepSeek-V2, arXiv:2405.04434, section 2.1.2). Softmax runs tile by tile with the largest
// score so far (arXiv:1805.02867).
void attend(const DecodeLayers& args, const DecodeLayer& layer, const Buffers& b, int64_t token, int64_t first,
            int64_t count, float* working) {
    const DecodeShape& s = args.shape;
    const int64_t width = s.latent + s.rope, rows = s.nope + s.value;
    const bf16* kv_b = reinterpret_cast<const bf16*>(layer.kv_b);
    float* queries = working;                      // (kTaskHeads, width)
    float* latents = working + kTaskHeads * width;  // (kTaskHeads, latent)
    for (int64_t i = 0; i < count; ++i) {
        const float* q = b.q + (token * s.heads + first + i) * (s.nope + s.rope);
        const bf16* w_uk = kv_b + (first + i) * rows * s.latent;
        float* query = queries + i * width;
        for (int64_t c = 0; c < s.latent; ++c) query[c] = latents[i * s.latent + c] = 0.0f;
        for (int64_t n = 0; n < s.nope; ++n) add_scaled(query, w_uk + n * s.latent, q[n], s.latent);
        for (int64_t r = 0; r < s.rope; ++r) query[s.latent + r] = q[s.nope + r];
    }
    float most[kTaskHeads], total[kTaskHeads] = {}, scores[kTaskHeads][kKeyTile];
    for (int64_t i = 0; i < count; ++i) most[i] = kLowest;
    const int64_t context = args.positions[token] + 1;
    const int64_t* blocks = args.tables + args.sequences[token] * args.table_width;
    for (int64_t tile = 0; tile < context; tile += kKeyTile) {
        const int64_t keys = context - tile < kKeyTile ? context - tile : kKeyTile;
        const float* rows_at[kKeyTile];
        for (int64_t k = 0; k < keys; ++k) {
            const int64_t position = tile + k;
            rows_at[k] = layer.cache +
                         (blocks[position / s.block_size] * s.block_size + position % s.block_size) * width;
        }
        for (int64_t k = 0; k < keys; ++k) {
            float products[kTaskHeads];
            for (int64_t i = 0; i < count; i += kHeadBlock)
                dots(queries + i * width, count - i, rows_at[k], width, products + i);
            for (int64_t i = 0; i < count; ++i) scores[i][k] = products[i] * s.softmax_scale;
        }
        for (int64_t i = 0; i < count; ++i) {
            float largest_now = most[i];
            for (int64_t k = 0; k < keys; ++k) largest_now = scores[i][k] > largest_now ? scores[i][k] : largest_now;
            if (largest_now > most[i] && tile > 0) {
                const float shrink = exponential_of(most[i] - largest_now);
                total[i] *= shrink;
                for (int64_t c = 0; c < s.latent; ++c) latents[i * s.latent + c] *= shrink;
            }
            most[i] = largest_now;
            for (int64_t k = keys; k < kKeyTile; ++k) scores[i][k] = kLowest;
            for (int64_t k = 0; k < kKeyTile; k += kLanes) {
                Lanes lanes = load(scores[i] + k);
                for (int r = 0; r < kRegisters; ++r) lanes.part[r] = exponential(lanes.part[r] - largest_now);
                store(scores[i] + k, lanes);
            }
            for (int64_t k = 0; k < keys; ++k) total[i] += scores[i][k];
        }
        for (int64_t k = 0; k < keys; ++k)
            for (int64_t i = 0; i < count; ++i)
                add_scaled(latents + i * s.latent, rows_at[k], scores[i][k], s.latent);
    }
    for (int64_t i = 0; i < count; ++i) {
        const bf16* w_uv = kv_b + ((first + i) * rows + s.nope) * s.latent;
        float* out = b.mixed + (token * s.heads + first + i) * s.value;
        for (int64_t v = 0; v < s.value; ++v) out[v] = dot(latents + i * s.latent, w_uv + v * s.latent, s.latent) / total[i];
    }
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
    const int64_t head_tasks = ceil_div(s.heads, kTaskHeads);
    int64_t read = tokens * s.heads * (s.nope + s.value) * s.latent * 2;
    for (int64_t t = 0; t < tokens; ++t) read += (args.positions[t] + 1) * s.heads * width * 4;
    parallel_for(tokens * head_tasks, read, [&](int64_t task) {
        const int64_t first = task % head_tasks * kTaskHeads;
        const int64_t count = s.heads - first < kTaskHeads ? s.heads - first : kTaskHeads;
        attend(args, layer, b, task / head_tasks, first, count, b.attention + task * attention_floats(s));
    });
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

// One token's experts, strongest first, and their weights. See openk2/ops/reference/moe.py, `route`.
void route(const DecodeLayers& args, int64_t index, const Buffers& b, int64_t token) {
    const DecodeShape& s = args.shape;
    const DecodeLayer& layer = args.layers[index];
    const int64_t experts = layer.down.count;
    const float* x = b.normed + token * s.hidden;
    float *scores = b.scores + token * experts, *choice = b.choice + token * experts;
    float most = kLowest;
    for (int64_t e = 0; e < experts; ++e) {
        scores[e] = dot(layer.router + e * s.hidden, x, s.hidden);
        most = scores[e] > most ? scores[e] : most;
    }
    if (s.sigmoid) {
        for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + exponential_of(-scores[e]));
    } else {
        float total = 0.0f;
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
        parallel_for(tokens, tokens * layer.down.count * s.hidden * 4,
                     [&](int64_t token) { route(args, index, b, token); });
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
