// Python bindings. Tensors come as addresses, which src/openk2/ops/cpu/ takes from tensors that it has checked: a trip
// through DLPack costs 10 us a tensor, an address 0.2 us.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.hpp"
#include "common/thread_pool.hpp"
#include "rms_norm.hpp"

namespace openk2 {

OPENK2_DECLARE_KERNEL(rms_norm, RmsNorm)

}  // namespace openk2

namespace nb = nanobind;
using openk2::Isa;

namespace {

using Address = std::uintptr_t;

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

}  // namespace

NB_MODULE(_native, m) {
    m.def("supported_isas", &supported_isas, "Names of the instruction sets that this machine has, slowest first.");
    m.def("set_num_threads", &openk2::set_num_threads, nb::arg("threads"), "Threads of a kernel, the caller among them.");
    m.def("num_threads", &openk2::num_threads);
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("eps"), nb::arg("is_bf16"), nb::arg("isa"));
}
