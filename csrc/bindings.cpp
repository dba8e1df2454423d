// Python bindings. Tensors come as addresses, which src/openk2/ops/cpu/ takes from tensors that it has checked: a trip
// through DLPack costs 10 us a tensor, an address 0.2 us.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention_inputs.hpp"
#include "causal_attention.hpp"
#include "common/isa.hpp"
#include "common/thread_pool.hpp"
#include "decode_layers.hpp"
#include "packed.hpp"
#include "prompt_attention.hpp"
#include "rms_norm.hpp"
#include "trained_experts.hpp"

namespace openk2 {

OPENK2_DECLARE_KERNEL(attention_inputs, AttentionInputs)
OPENK2_DECLARE_KERNEL(attention_inputs_backward, AttentionInputs)
OPENK2_DECLARE_KERNEL(causal_attention, CausalAttention)
OPENK2_DECLARE_KERNEL(causal_attention_backward, CausalAttention)
OPENK2_DECLARE_KERNEL(decode_layers, DecodeLayers)
OPENK2_DECLARE_KERNEL(packed_experts, PackedExperts)
OPENK2_DECLARE_KERNEL(packed_linear, PackedLinear)
OPENK2_DECLARE_KERNEL(prompt_attention, PromptAttention)
OPENK2_DECLARE_KERNEL(rms_norm, RmsNorm)
OPENK2_DECLARE_KERNEL(rms_norm_backward, RmsNormBackward)
OPENK2_DECLARE_KERNEL(trained_experts, TrainedExperts)
OPENK2_DECLARE_KERNEL(trained_experts_backward, TrainedExperts)

}  // namespace openk2

namespace nb = nanobind;
using openk2::Isa;

namespace {

using Address = std::uintptr_t;

// Working memory of one call, taken again and again from the same block of its thread, which only ever grows.
class Scratch {
   public:
    explicit Scratch(std::int64_t bytes) {
        if (block_.size() < static_cast<std::size_t>(bytes) + kAlign) block_.resize(bytes + kAlign);
    }
    std::uint8_t* at() const {
        const auto address = reinterpret_cast<Address>(block_.data());
        return block_.data() + (kAlign - address % kAlign) % kAlign;
    }

   private:
    static constexpr std::size_t kAlign = 64;
    static thread_local std::vector<std::uint8_t> block_;
};

thread_local std::vector<std::uint8_t> Scratch::block_;

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const auto& entry : openk2::compiled_isas)
        if (entry.supported()) names.emplace_back(entry.name);
    return names;
}

Isa isa_from_name(const std::string& name) {
    for (const auto& entry : openk2::compiled_isas)
        if (entry.name == name && entry.supported()) return entry.isa;
    throw std::invalid_argument("not an instruction set of this machine: " + name);
}

void rms_norm(Address x, Address weight, Address out, std::int64_t rows, std::int64_t cols, double eps, bool is_bf16,
              const std::string& isa) {
    const openk2::RmsNorm args{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(weight),
                               reinterpret_cast<void*>(out),     rows,
                               cols,                             static_cast<float>(eps),
                               is_bf16};
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    openk2::dispatch_rms_norm(version, args);
}

// `tensors`: x, weight, gradient, and the gradients of x and weight.
void rms_norm_backward(std::array<Address, 5> tensors, std::int64_t rows, std::int64_t cols, double eps,
                       const std::string& isa) {
    const auto floats = [&](int index) { return reinterpret_cast<float*>(tensors[index]); };
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::norm_row_blocks(rows) * cols * 4);
    openk2::dispatch_rms_norm_backward(version, {floats(0), floats(1), floats(2), floats(3), floats(4), rows, cols,
                                                 static_cast<float>(eps), reinterpret_cast<float*>(scratch.at())});
}

// `sizes`: tokens, topk, experts, width, hidden. `inputs`: x, ids, weights, gate_up, down. `made`: the output; backward
// its gradient and those of x, weights, gate_up and down.
void trained_experts(bool backward, std::array<std::int64_t, 5> sizes, std::array<Address, 5> inputs,
                     Address gate_up_out, const std::vector<Address>& made, const std::string& isa) {
    const auto floats = [](Address address) { return reinterpret_cast<float*>(address); };
    if (made.size() != (backward ? 5 : 1)) throw std::invalid_argument("one output, or its gradient and four more");
    openk2::TrainedExperts args{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], floats(inputs[0]),
                                reinterpret_cast<const std::int64_t*>(inputs[1]), floats(inputs[2]), floats(inputs[3]),
                                floats(inputs[4]), floats(gate_up_out), nullptr, nullptr, nullptr, nullptr, nullptr,
                                nullptr, nullptr};
    for (std::int64_t pair = 0; pair < args.tokens * args.topk; ++pair)
        if (args.ids[pair] < 0 || args.ids[pair] >= args.experts)
            throw std::invalid_argument("expert " + std::to_string(args.ids[pair]) + " of " + std::to_string(args.experts));
    if (backward) {
        args.grad = floats(made[0]);
        args.dx = floats(made[1]);
        args.d_weights = floats(made[2]);
        args.d_gate_up = floats(made[3]);
        args.d_down = floats(made[4]);
    } else {
        args.out = floats(made[0]);
    }
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::trained_experts_scratch(args, backward));
    args.scratch = scratch.at();
    backward ? openk2::dispatch_trained_experts_backward(version, args)
             : openk2::dispatch_trained_experts(version, args);
}

openk2::PackedStack stack_at(Address data, int format, std::int64_t count, std::int64_t rows, std::int64_t cols) {
    return {reinterpret_cast<const std::uint8_t*>(data), static_cast<openk2::PackedFormat>(format), count, rows, cols};
}

void packed_linear(Address x, Address data, int format, std::int64_t rows, std::int64_t cols, Address out,
                   std::int64_t tokens, const std::string& isa) {
    openk2::PackedLinear args{reinterpret_cast<const float*>(x), stack_at(data, format, 1, rows, cols),
                              reinterpret_cast<float*>(out), nullptr, tokens};
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::packed_linear_scratch(args));
    args.scratch = scratch.at();
    openk2::dispatch_packed_linear(version, args);
}

void packed_experts(Address x, Address ids, Address weights, Address gate_up, Address down, int format,
                    std::int64_t experts, std::int64_t width, std::int64_t hidden, Address out, std::int64_t tokens,
                    std::int64_t topk, const std::string& isa) {
    openk2::PackedExperts args{reinterpret_cast<const float*>(x),
                               reinterpret_cast<const std::int64_t*>(ids),
                               reinterpret_cast<const float*>(weights),
                               stack_at(gate_up, format, 2 * experts, width, hidden),
                               stack_at(down, format, experts, hidden, width),
                               reinterpret_cast<float*>(out),
                               nullptr,
                               tokens,
                               topk};
    for (std::int64_t pair = 0; pair < tokens * topk; ++pair)
        if (args.ids[pair] < 0 || args.ids[pair] >= experts)
            throw std::invalid_argument("expert " + std::to_string(args.ids[pair]) + " of " + std::to_string(experts));
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::packed_experts_scratch(args));
    args.scratch = scratch.at();
    openk2::dispatch_packed_experts(version, args);
}

// `sizes`: tokens, heads, nope, rope, value, and floats from one row of k_pe to the next. `tensors`: cos, sin, q, kv,
// k_pe, query, key, values; backward all but the first two are gradients.
void attention_inputs(bool backward, std::array<std::int64_t, 6> sizes, std::array<Address, 8> tensors,
                      const std::string& isa) {
    const auto floats = [&](int index) { return reinterpret_cast<float*>(tensors[index]); };
    const openk2::AttentionInputs args{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], floats(0), floats(1),
                                       floats(2), floats(3), floats(4), sizes[5], floats(5), floats(6), floats(7)};
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    backward ? openk2::dispatch_attention_inputs_backward(version, args)
             : openk2::dispatch_attention_inputs(version, args);
}

// `sizes`: tokens, heads, key_dim, value_dim. `made`: out, log-sum-exp, and forward the largest scores; backward the
// gradients of out, q, k and v.
void causal_attention(bool backward, std::array<std::int64_t, 4> sizes, const std::vector<std::int64_t>& borders,
                      double scale, std::array<Address, 3> inputs, Address out, Address lse,
                      const std::vector<Address>& made, const std::string& isa) {
    const auto floats = [](Address address) { return reinterpret_cast<float*>(address); };
    if (borders.size() < 2 || borders.front() != 0 || borders.back() != sizes[0] || made.size() != (backward ? 4 : 1))
        throw std::invalid_argument("borders go from 0 to the number of tokens");
    openk2::CausalAttention args{sizes[0], sizes[1], sizes[2], sizes[3], borders.data(),
                                 static_cast<std::int64_t>(borders.size()) - 1, static_cast<float>(scale),
                                 floats(inputs[0]), floats(inputs[1]), floats(inputs[2]), floats(out), floats(lse),
                                 nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (backward) {
        args.grad = floats(made[0]);
        args.dq = floats(made[1]);
        args.dk = floats(made[2]);
        args.dv = floats(made[3]);
    } else {
        args.largest = floats(made[0]);
    }
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::causal_attention_scratch(args));
    args.scratch = scratch.at();
    backward ? openk2::dispatch_causal_attention_backward(version, args)
             : openk2::dispatch_causal_attention(version, args);
}

// `sizes`: heads, nope, rope, value, latent, block size. `tensors`: both parts of the queries, cache, kv_b, block tables,
// output; `strides` of the queries' parts: row and head of each. A span: row, tokens, position, row of the tables.
void prompt_attention(std::array<std::int64_t, 6> sizes, bool is_bf16, std::array<Address, 6> tensors,
                      std::array<std::int64_t, 4> strides, std::int64_t table_width,
                      const std::vector<std::array<std::int64_t, 4>>& spans, double scale, const std::string& isa) {
    std::vector<openk2::PromptSpan> taken;
    for (const auto& span : spans) taken.push_back({span[0], span[1], span[2], span[3]});
    const auto at = [&](int index) { return reinterpret_cast<const void*>(tensors[index]); };
    openk2::PromptAttention args{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], is_bf16,
                                 at(0), strides[0], strides[1], at(1), strides[2], strides[3], at(2), at(3),
                                 reinterpret_cast<const std::int64_t*>(tensors[4]), table_width,
                                 taken.data(), static_cast<std::int64_t>(taken.size()), static_cast<float>(scale),
                                 reinterpret_cast<void*>(tensors[5]), openk2::num_threads(), nullptr};
    const Isa version = isa_from_name(isa);
    nb::gil_scoped_release unlocked;
    const Scratch scratch(openk2::prompt_attention_scratch(args));
    args.scratch = scratch.at();
    openk2::dispatch_prompt_attention(version, args);
}

using Stack = std::array<std::int64_t, 5>;  // address, format, count, rows, cols

openk2::PackedStack stack_of(const Stack& stack) {
    return stack_at(static_cast<Address>(stack[0]), static_cast<int>(stack[1]), stack[2], stack[3], stack[4]);
}

const float* floats_at(Address address) { return reinterpret_cast<const float*>(address); }

// Calls Python for the experts of a layer. What it raises waits here until the kernel, which knows no exceptions, is out.
class ExpertHolder {
   public:
    ExpertHolder(nb::object hold, const Stack& gate_up, const Stack& down)
        : hold_(std::move(hold)), slots_{&ExpertHolder::call, this, stack_of(gate_up), stack_of(down)} {}
    ExpertHolder(const ExpertHolder&) = delete;
    ExpertHolder& operator=(const ExpertHolder&) = delete;

    const openk2::ExpertSlots* slots() const { return &slots_; }
    void rethrow() {
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

   private:
    static bool call(void* owner, std::int64_t layer, std::int64_t* ids, const float* weights, const float* x,
                     std::int64_t tokens) {
        auto* self = static_cast<ExpertHolder*>(owner);
        nb::gil_scoped_acquire locked;
        try {
            self->hold_(layer, reinterpret_cast<Address>(ids), reinterpret_cast<Address>(weights),
                        reinterpret_cast<Address>(x), tokens);
            return true;
        } catch (...) {
            self->error_ = std::current_exception();
            return false;
        }
    }

    nb::object hold_;
    openk2::ExpertSlots slots_;
    std::exception_ptr error_;
};

// The layers of one model, whose tensors Python keeps alive.
class DecodePlan {
   public:
    DecodePlan(std::array<std::int64_t, 10> sizes, std::array<bool, 3> rules, std::array<double, 4> scales)
        : shape_{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8],
                 rules[0], rules[1], rules[2],
                 static_cast<float>(scales[0]), static_cast<float>(scales[1]), static_cast<float>(scales[2]),
                 static_cast<float>(scales[3]), sizes[9]} {}

    void add_layer(std::array<Address, 7> vectors, std::array<Stack, 8> stacks) {
        layers_.push_back({floats_at(vectors[0]), stack_of(stacks[0]), floats_at(vectors[1]), stack_of(stacks[1]),
                           stack_of(stacks[2]), floats_at(vectors[2]),
                           reinterpret_cast<const std::uint16_t*>(vectors[3]), stack_of(stacks[3]),
                           floats_at(vectors[4]), floats_at(vectors[5]), floats_at(vectors[6]), stack_of(stacks[4]),
                           stack_of(stacks[5]), stack_of(stacks[6]), stack_of(stacks[7]), nullptr});
    }

    void hold_experts(nb::object hold, Stack gate_up, Stack down) {
        holder_ = std::make_unique<ExpertHolder>(std::move(hold), gate_up, down);
    }

    void run(Address h, Address cos, Address sin, std::array<Address, 4> places, std::int64_t table_width,
             std::array<Address, 4> budgets, const std::vector<Address>& caches, std::int64_t tokens,
             const std::string& isa) {
        if (caches.size() != layers_.size()) throw std::invalid_argument("one cache a layer");
        std::vector<openk2::DecodeLayer> layers = layers_;
        for (std::size_t i = 0; i < layers.size(); ++i) layers[i].cache = reinterpret_cast<float*>(caches[i]);
        const auto integers = [](Address address) { return reinterpret_cast<const std::int64_t*>(address); };
        const openk2::ExpertBudgets limits{integers(budgets[0]), integers(budgets[1]),
                                           reinterpret_cast<const double*>(budgets[2]),
                                           reinterpret_cast<std::int64_t*>(budgets[3])};
        openk2::DecodeLayers args{shape_, layers.data(), static_cast<std::int64_t>(layers.size()), tokens,
                                  reinterpret_cast<float*>(h), floats_at(cos), floats_at(sin), integers(places[0]),
                                  integers(places[1]), integers(places[2]), integers(places[3]), table_width,
                                  budgets[0] ? &limits : nullptr, holder_ ? holder_->slots() : nullptr, nullptr};
        const Isa version = isa_from_name(isa);
        {
            nb::gil_scoped_release unlocked;
            const Scratch scratch(openk2::decode_scratch(args));
            args.scratch = scratch.at();
            openk2::dispatch_decode_layers(version, args);
        }
        if (holder_) holder_->rethrow();
    }

   private:
    openk2::DecodeShape shape_;
    std::vector<openk2::DecodeLayer> layers_;
    std::unique_ptr<ExpertHolder> holder_;
};

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // what lives until the interpreter ends is not lost
    m.def("supported_isas", &supported_isas, "Names of the instruction sets that this machine has, slowest first.");
    m.def("set_num_threads", &openk2::set_num_threads, nb::arg("threads"), "Threads of a kernel, the caller among them.");
    m.def("num_threads", &openk2::num_threads);
    m.def("set_least_shared_bytes", &openk2::set_least_shared_bytes, nb::arg("bytes"),
          "Loops that read fewer bytes stay with the calling thread.");
    m.def("least_shared_bytes", &openk2::least_shared_bytes);
    nb::class_<DecodePlan>(m, "DecodePlan")
        .def(nb::init<std::array<std::int64_t, 10>, std::array<bool, 3>, std::array<double, 4>>(), nb::arg("sizes"),
             nb::arg("rules"), nb::arg("scales"))
        .def("add_layer", &DecodePlan::add_layer, nb::arg("vectors"), nb::arg("stacks"))
        .def("hold_experts", &DecodePlan::hold_experts, nb::arg("hold"), nb::arg("gate_up"), nb::arg("down"))
        .def("run", &DecodePlan::run, nb::arg("h"), nb::arg("cos"), nb::arg("sin"), nb::arg("places"),
             nb::arg("table_width"), nb::arg("budgets"), nb::arg("caches"), nb::arg("tokens"), nb::arg("isa"));
    m.def("attention_inputs", &attention_inputs, nb::arg("backward"), nb::arg("sizes"), nb::arg("tensors"),
          nb::arg("isa"));
    m.def("causal_attention", &causal_attention, nb::arg("backward"), nb::arg("sizes"), nb::arg("borders"),
          nb::arg("scale"), nb::arg("inputs"), nb::arg("out"), nb::arg("lse"), nb::arg("made"), nb::arg("isa"));
    m.def("packed_linear", &packed_linear, nb::arg("x"), nb::arg("data"), nb::arg("format"), nb::arg("rows"),
          nb::arg("cols"), nb::arg("out"), nb::arg("tokens"), nb::arg("isa"));
    m.def("packed_experts", &packed_experts, nb::arg("x"), nb::arg("ids"), nb::arg("weights"), nb::arg("gate_up"),
          nb::arg("down"), nb::arg("format"), nb::arg("experts"), nb::arg("width"), nb::arg("hidden"), nb::arg("out"),
          nb::arg("tokens"), nb::arg("topk"), nb::arg("isa"));
    m.def("prompt_attention", &prompt_attention, nb::arg("sizes"), nb::arg("is_bf16"), nb::arg("tensors"),
          nb::arg("strides"), nb::arg("table_width"), nb::arg("spans"), nb::arg("scale"), nb::arg("isa"));
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("eps"), nb::arg("is_bf16"), nb::arg("isa"));
    m.def("rms_norm_backward", &rms_norm_backward, nb::arg("tensors"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("eps"), nb::arg("isa"));
    m.def("trained_experts", &trained_experts, nb::arg("backward"), nb::arg("sizes"), nb::arg("inputs"),
          nb::arg("gate_up_out"), nb::arg("made"), nb::arg("isa"));
}
