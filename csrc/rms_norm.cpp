// RMSNorm; the definition is openk2/ops/reference/norm.py.
//
// A row's sum of squares runs in 16 lanes over its columns, then in a fixed tree: it depends neither on the other rows
// nor on the instruction set, so every version gives the same bits.
#include "rms_norm.hpp"

#include "common/thread_pool.hpp"
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

inline float dot(const float* a, const float* b, const float* c, int64_t cols) {
    Lanes sums = {};
    for (int64_t i = 0; i < cols; i += kLanes) {
        const int64_t count = cols - i < kLanes ? cols - i : kLanes;
        const auto part = [&](const float* from) { return count == kLanes ? load(from + i) : load_some(from + i, count); };
        const Lanes products = multiply(part(a), part(b));
        for (int r = 0; r < kRegisters; ++r) sums.part[r] += c ? products.part[r] * part(c).part[r] : products.part[r];
    }
    return sum(sums);
}

// With n = x s, s = 1 / sqrt(mean(x^2) + eps): dx = s (w g - n mean(w g n)), d_weight += g n.
void norm_row_backward(const RmsNormBackward& a, int64_t row, float* d_weight) {
    const float *x = a.x + row * a.cols, *g = a.grad + row * a.cols;
    float* dx = a.dx + row * a.cols;
    const float cols = static_cast<float>(a.cols);
    const float s = 1.0f / __builtin_sqrtf(dot(x, x, nullptr, a.cols) / cols + a.eps);
    const float pull = dot(a.weight, g, x, a.cols) / cols * s * s;
    for (int64_t i = 0; i < a.cols; ++i) {
        dx[i] = s * (a.weight[i] * g[i] - x[i] * pull);
        d_weight[i] += g[i] * x[i] * s;
    }
}

}  // namespace

void rms_norm_backward(const RmsNormBackward& a) {
    parallel_for(norm_row_blocks(a.rows), [&](int64_t block) {
        float* sums = a.sums + block * a.cols;
        for (int64_t i = 0; i < a.cols; ++i) sums[i] = 0.0f;
        const int64_t end = (block + 1) * kNormRows < a.rows ? (block + 1) * kNormRows : a.rows;
        for (int64_t row = block * kNormRows; row < end; ++row) norm_row_backward(a, row, sums);
    });
    for (int64_t i = 0; i < a.cols; ++i) a.d_weight[i] = 0.0f;
    for (int64_t block = 0; block < norm_row_blocks(a.rows); ++block)
        for (int64_t i = 0; i < a.cols; ++i) a.d_weight[i] += a.sums[block * a.cols + i];
}

void rms_norm(const RmsNorm& args) {
    if (args.is_bf16)
        norm_rows<bf16>(args);
    else
        norm_rows<float>(args);
}

}  // namespace openk2::OPENK2_ISA
