// Dot products of a few rows with a few others, side by side: that hides the latency of a sum and reads each row once.
#pragma once

#include "fused.hpp"

namespace openk2 {
namespace {

constexpr int kDotRows = 4;                                 // of one matrix
constexpr int kDotMates = kRegisterBytes == 64 ? 4 : 1;     // of the other

// Which side comes from memory: its next rows are read ahead, as if they were a stride apart. The
// other side is in the first cache.
enum class Streamed { rows, mates };

// out[m][r] = row r of `a`, `stride` apart, with b[m]; `count` columns. Lanes run over the columns.
template <Streamed streamed, int R, int M, typename A>
inline void dots(const A* a, int64_t stride, const float* const (&b)[M], int64_t count, F32x4 (&out)[M]) {
    static_assert(R <= kDotRows && kDotRows == 4);
    Lanes total[M][kDotRows] = {};
    for_lanes(count, [&](int64_t i, auto lanes) {
        Lanes rows[R];
        for (int r = 0; r < R; ++r) {
            if constexpr (streamed == Streamed::rows) prefetch(a + (r + kDotRows) * stride + i);
            rows[r] = lanes.load(a + r * stride + i);
        }
        for (int m = 0; m < M; ++m) {
            if constexpr (streamed == Streamed::mates) prefetch(b[m] + kDotMates * stride + i);
            const Lanes mate = lanes.load(b[m] + i);
            for (int r = 0; r < R; ++r) add_product(total[m][r], rows[r], mate);
        }
    });
    for (int m = 0; m < M; ++m) out[m] = sums(total[m][0], total[m][1], total[m][2], total[m][3]);
}

// put(row, mate, product) for every pair of `rows` rows of `a` with `mates` rows, the m-th of them at mate_at(m).
template <Streamed streamed, typename A, typename MateAt, typename Put>
inline void all_dots(const A* a, int64_t stride, int64_t rows, int64_t mates, int64_t count, const MateAt& mate_at,
                     const Put& put) {
    for (int64_t m = 0; m < mates; m += kDotMates)
        as_constant<kDotMates>(mates - m, [&](auto num_mates) {
            constexpr int M = decltype(num_mates)::value;
            const float* b[M];
            for (int i = 0; i < M; ++i) b[i] = mate_at(m + i);
            for (int64_t r = 0; r < rows; r += kDotRows)
                as_constant<kDotRows>(rows - r, [&](auto num_rows) {
                    constexpr int R = decltype(num_rows)::value;
                    F32x4 products[M];
                    dots<streamed, R, M>(a + r * stride, stride, b, count, products);
                    for (int i = 0; i < M; ++i)
                        for (int j = 0; j < R; ++j) put(r + j, m + i, products[i][j]);
                });
        });
}

}  // namespace
}  // namespace openk2
