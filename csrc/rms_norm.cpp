// RMSNorm; the definition is openk2/ops/reference/norm.py.
//
// A row's sum of squares runs in 16 lanes over its columns, then in a fixed tree: it depends neither on the other rows
// nor on the instruction set, so every version gives the same bits.
#include "rms_norm.hpp"

#include "common/vector.hpp"

namespace openk2::OPENK2_ISA {
namespace {

template <typename T>
void norm_row(const T* x, const T* weight, T* out, int64_t cols, float eps) {
    const int64_t whole = cols - cols % kLanes, rest = cols - whole;
    Lanes squares = {};
    for (int64_t i = 0; i < whole; i += kLanes) add_squares(squares, load(x + i));
    if (rest) add_squares(squares, load_some(x + whole, rest));
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(cols) + eps);

    for (int64_t i = 0; i < whole; i += kLanes)
        store(out + i, multiply(scaled<T>(load(x + i), scale), load(weight + i)));
    if (rest) {
        const Lanes normed = scaled<T>(load_some(x + whole, rest), scale);
        store_some(out + whole, multiply(normed, load_some(weight + whole, rest)), rest);
    }
}

template <typename T>
void norm_rows(const RmsNorm& args) {
    const T* x = static_cast<const T*>(args.x);
    T* out = static_cast<T*>(args.out);
    for (int64_t row = 0; row < args.rows; ++row)
        norm_row(x + row * args.cols, static_cast<const T*>(args.weight), out + row * args.cols, args.cols, args.eps);
}

}  // namespace

void rms_norm(const RmsNorm& args) {
    if (args.is_bf16)
        norm_rows<bf16>(args);
    else
        norm_rows<float>(args);
}

}  // namespace openk2::OPENK2_ISA
