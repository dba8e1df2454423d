// Products of small float32 matrices, and turning them round. A product's sums run in the order of its depth.
#pragma once

#include "vector.hpp"

namespace openk2 {
namespace {  // one copy per translation unit: each is compiled for its own instruction set

constexpr int kVectors = 2;  // registers side by side
constexpr int kRows = kRegisterBytes == 64 ? 8 : 4;
constexpr int64_t kStep = kVectors * kWidth;

// Rows of A and C, and of B, one after the other at a distance.
struct Strided {
    const float* A;
    int64_t row, col;  // a(i, k) = A[i * row + k * col]
    const float* B;
    int64_t ldb;
    float* C;
    int64_t ldc;

    float a(int64_t i, int64_t k) const { return A[i * row + k * col]; }
    const float* b(int64_t k) const { return B + k * ldb; }
    float* c(int64_t i) const { return C + i * ldc; }
};

// C (+)= A B for `Rows` rows from `first` on and `Vectors` registers of columns from `column` on. `Places` says where the
// numbers lie, as Strided does.
template <int Rows, int Vectors, bool accumulate, typename Places>
inline void product_block(const Places& at, int64_t first, int64_t column, int64_t depth) {
    F32 sums[Rows][Vectors];
    for (int i = 0; i < Rows; ++i)
        for (int n = 0; n < Vectors; ++n)
            sums[i][n] = accumulate ? load_part(at.c(first + i) + column + n * kWidth) : F32{};
    for (int64_t k = 0; k < depth; ++k) {
        F32 b[Vectors];
        for (int n = 0; n < Vectors; ++n) b[n] = load_part(at.b(k) + column + n * kWidth);
        for (int i = 0; i < Rows; ++i) {
            const float a = at.a(first + i, k);
            for (int n = 0; n < Vectors; ++n) sums[i][n] += b[n] * a;
        }
    }
    for (int i = 0; i < Rows; ++i)
        for (int n = 0; n < Vectors; ++n) store_part(at.c(first + i) + column + n * kWidth, sums[i][n]);
}

template <int Vectors, bool accumulate, typename Places>
inline void product_columns(const Places& at, int64_t column, int64_t rows, int64_t depth) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) product_block<kRows, Vectors, accumulate>(at, i, column, depth);
    for (; i < rows; ++i) product_block<1, Vectors, accumulate>(at, i, column, depth);
}

// C (rows, columns) (+)= A (rows, depth) B (depth, columns); columns is a multiple of kWidth.
template <bool accumulate, typename Places>
inline void product(const Places& at, int64_t rows, int64_t columns, int64_t depth) {
    int64_t n = 0;
    for (; n + kStep <= columns; n += kStep) product_columns<kVectors, accumulate>(at, n, rows, depth);
    for (; n < columns; n += kWidth) product_columns<1, accumulate>(at, n, rows, depth);
}

template <bool accumulate>
void product(const float* A, int64_t row, int64_t col, const float* B, int64_t ldb, float* C, int64_t ldc, int64_t rows,
             int64_t columns, int64_t depth) {
    product<accumulate>(Strided{A, row, col, B, ldb, C, ldc}, rows, columns, depth);
}

// Lanes of a and b, which come after each other.
inline F32 shuffled(F32 a, F32 b, U32 lanes) {
#if defined(__clang__)  // it knows a shuffle when it sees one, and has no such function
    F32 out;
    for (int j = 0; j < kWidth; ++j) out[j] = lanes[j] < kWidth ? a[lanes[j]] : b[lanes[j] - kWidth];
    return out;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

// A square of kWidth registers, its rows for its columns: at each step the blocks of `Half` lanes off the diagonal
// change places.
template <int Half = kWidth / 2>
inline void transpose_square(F32 (&rows)[kWidth]) {
    U32 low, high;
    for (int j = 0; j < kWidth; ++j) {
        low[j] = j & Half ? kWidth + j - Half : j;
        high[j] = j & Half ? kWidth + j : j + Half;
    }
    for (int i = 0; i < kWidth; ++i)
        if (!(i & Half)) {
            const F32 a = rows[i], b = rows[i + Half];
            rows[i] = shuffled(a, b, low);
            rows[i + Half] = shuffled(a, b, high);
        }
    if constexpr (Half > 1) transpose_square<Half / 2>(rows);
}

inline void convert(float from, float* to) { *to = from; }
inline void convert(bf16 from, float* to) {
    const uint32_t bits = static_cast<uint32_t>(from.bits) << 16;
    __builtin_memcpy(to, &bits, 4);
}
inline void convert(float from, bf16* to) {
    const U16 bits = narrow(F32{} + from);
    to->bits = bits[0];
}

// to[c * to_stride + r] = from[r * from_stride + c]
template <typename From, typename To>
void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t cols, To* to, int64_t to_stride) {
    const int64_t whole_rows = rows - rows % kWidth, whole_cols = cols - cols % kWidth;
    for (int64_t r = 0; r < whole_rows; r += kWidth)
        for (int64_t c = 0; c < whole_cols; c += kWidth) {
            F32 square[kWidth];
            for (int i = 0; i < kWidth; ++i) square[i] = load_part(from + (r + i) * from_stride + c);
            transpose_square(square);
            for (int i = 0; i < kWidth; ++i) store_part(to + (c + i) * to_stride + r, square[i]);
        }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; ++c)
            convert(from[r * from_stride + c], to + c * to_stride + r);
}

}  // namespace
}  // namespace openk2
