// Products of a few activation rows with one tile of 16 matrix rows in the packed layout.
//
// int8, int4: activations are quantised to int8 by groups of 32. A group's dot product is an exact integer, and the
// groups are added in float32 in their order: every instruction set gives the same bits.
// bf16: each output is one sum in float32 in the order of the columns, each product fused with its sum. The 16 rows of
// a tile are the vector's lanes, so this order costs no shuffles.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(OPENK2_USES_NEON)
#include <arm_neon.h>
#endif

#include "../packed.hpp"
#include "exponential.hpp"
#include "fused.hpp"

namespace openk2 {
namespace {

typedef int32_t I32 __attribute__((vector_size(kRegisterBytes)));

constexpr int kRowBlock = kRegisterBytes == 64 ? 8 : 4;  // rows that share one unpacking of the weights

// What weights are above their value where they are taken unsigned: int4 as it lies in memory, int8 for instructions
// that want one side so.
constexpr int32_t too_large(PackedFormat format) { return format == PackedFormat::int4 ? 8 : 128; }

struct Activations {
    int64_t groups;
    float* values;    // (rows, groups * 32): bf16 only
    int8_t* quants;   // (rows, groups * 32)
    float* scales;    // (rows, groups)
    int32_t* shifts;  // (rows, groups): minus the sum of the quants, times `too_large`
    int32_t too_large;
};

inline Activations activations_at(uint8_t*& scratch, PackedFormat format, int64_t rows, int64_t cols) {
    Activations a = {};
    a.groups = ceil_div(cols, kGroup);
    uint8_t* at = scratch;
    if (format == PackedFormat::bf16) {
        a.values = reinterpret_cast<float*>(at);
    } else {
        a.quants = reinterpret_cast<int8_t*>(at);
        at += padded(rows * a.groups * kGroup);
        a.scales = reinterpret_cast<float*>(at);
        at += padded(rows * a.groups * 4);
        a.shifts = reinterpret_cast<int32_t*>(at);
        a.too_large = too_large(format);
    }
    scratch += activation_bytes(format, rows, cols);
    return a;
}

// `count` <= 32 columns as group `group` of row `row`.
inline void put_group(const Activations& a, int64_t row, int64_t group, const float* x, int64_t count) {
    if (a.values) {
        float* to = a.values + (row * a.groups + group) * kGroup;
        for (int64_t i = 0; i < kGroup; ++i) to[i] = i < count ? x[i] : 0.0f;
        return;
    }
    uint32_t largest = 0;  // as bits, so that a NaN is the largest of all
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float most;
    __builtin_memcpy(&most, &largest, 4);
    const bool finite = largest < 0x7f800000u;
    const float inverse = finite && most > 1e-30f ? 127.0f / most : 0.0f;
    a.scales[row * a.groups + group] = !finite ? __builtin_nanf("") : most > 1e-30f ? most / 127.0f : 0.0f;
    int8_t* to = a.quants + (row * a.groups + group) * kGroup;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    int32_t sum = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
        int32_t quant = 0;
        if (i < count && inverse != 0.0f) {
            const float shifted = x[i] * inverse + kRound;
            int32_t bits;
            __builtin_memcpy(&bits, &shifted, 4);
            quant = bits - 0x4b400000;
        }
        to[i] = static_cast<int8_t>(quant);
        sum += quant;
    }
    a.shifts[row * a.groups + group] = -a.too_large * sum;
}

inline void put_row(const Activations& a, int64_t row, const float* x, int64_t cols) {
    for (int64_t group = 0; group < a.groups; ++group) {
        const int64_t left = cols - group * kGroup;
        put_group(a, row, group, x + group * kGroup, left < kGroup ? left : kGroup);
    }
}

struct Integers {
    I32 part[kRegisters];
};

inline int32_t four_bytes(const int8_t* from) {
    int32_t value;
    __builtin_memcpy(&value, from, 4);
    return value;
}

#if defined(OPENK2_USES_NEON)
// Adds up the dot products of 4 bytes each: a[i] += sum of w[4 i + j] * x[4 number + j].
template <int number>
inline int32x4_t add_dots(int32x4_t a, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_laneq_s32(a, w, x, number);
#else
    // Pairs of at most 2 * 128 * 127 fit 16 bits.
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), number));
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(four)), high = vmull_high_s8(w, four);
    return vpadalq_s16(a, vpaddq_s16(low, high));
#endif
}
#endif

// Dot products of one group: 16 matrix rows with M activation rows.
template <PackedFormat format, int M>
inline void group_dots(const uint8_t* quants, const int8_t* const (&x)[M], const int32_t* const (&shifts)[M],
                       Integers (&dots)[M]) {
#if defined(__AVX512VNNI__)
    __m512i acc[M];
    for (int m = 0; m < M; ++m) acc[m] = _mm512_set1_epi32(*shifts[m]);
    if constexpr (format == PackedFormat::int4) {
        const __m512i low = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; ++j) {
            const __m512i bytes = _mm512_loadu_si512(quants + 64 * j);
            const __m512i a = _mm512_and_si512(bytes, low), b = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
            for (int m = 0; m < M; ++m) {
                acc[m] = _mm512_dpbusd_epi32(acc[m], a, _mm512_set1_epi32(four_bytes(x[m] + 4 * j)));
                acc[m] = _mm512_dpbusd_epi32(acc[m], b, _mm512_set1_epi32(four_bytes(x[m] + 4 * j + 16)));
            }
        }
    } else {
        for (int j = 0; j < 8; ++j) {
            const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(quants + 64 * j), _mm512_set1_epi8(-128));
            for (int m = 0; m < M; ++m)
                acc[m] = _mm512_dpbusd_epi32(acc[m], w, _mm512_set1_epi32(four_bytes(x[m] + 4 * j)));
        }
    }
    for (int m = 0; m < M; ++m) dots[m].part[0] = (I32)acc[m];
#elif defined(__AVX2__)
    const __m256i ones = _mm256_set1_epi16(1);
    for (int p = 0; p < 2; ++p) {
        __m256i acc[M];
        for (int m = 0; m < M; ++m) acc[m] = _mm256_setzero_si256();
        if constexpr (format == PackedFormat::int4) {
            // Eight pairs of at most 2 * 15 * 127 stay within 16 bits.
            const __m256i low = _mm256_set1_epi8(15);
            for (int j = 0; j < 4; ++j) {
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + 64 * j + 32 * p));
                const __m256i a = _mm256_and_si256(bytes, low);
                const __m256i b = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                for (int m = 0; m < M; ++m) {
                    const __m256i xa = _mm256_set1_epi32(four_bytes(x[m] + 4 * j));
                    const __m256i xb = _mm256_set1_epi32(four_bytes(x[m] + 4 * j + 16));
                    acc[m] = _mm256_add_epi16(acc[m], _mm256_maddubs_epi16(a, xa));
                    acc[m] = _mm256_add_epi16(acc[m], _mm256_maddubs_epi16(b, xb));
                }
            }
            for (int m = 0; m < M; ++m)
                dots[m].part[p] = (I32)_mm256_add_epi32(_mm256_madd_epi16(acc[m], ones), _mm256_set1_epi32(*shifts[m]));
        } else {
            // |x| times w with x's sign: two products of at most 127 * 127 fit 16 bits, so nothing saturates.
            for (int j = 0; j < 8; ++j) {
                const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + 64 * j + 32 * p));
                for (int m = 0; m < M; ++m) {
                    const __m256i xj = _mm256_set1_epi32(four_bytes(x[m] + 4 * j));
                    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(xj), _mm256_sign_epi8(w, xj));
                    acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(pairs, ones));
                }
            }
            for (int m = 0; m < M; ++m) dots[m].part[p] = (I32)acc[m];
        }
    }
#elif defined(OPENK2_USES_NEON)
    for (int p = 0; p < 4; ++p) {
        int32x4_t acc[M];
        for (int m = 0; m < M; ++m) acc[m] = vdupq_n_s32(format == PackedFormat::int4 ? *shifts[m] : 0);
        int8x16_t w[8];
        for (int j = 0; j < (format == PackedFormat::int4 ? 4 : 8); ++j) {
            const uint8x16_t bytes = vld1q_u8(quants + 64 * j + 16 * p);
            if constexpr (format == PackedFormat::int4) {
                w[j] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                w[j + 4] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
            } else {
                w[j] = vreinterpretq_s8_u8(bytes);
            }
        }
        for (int m = 0; m < M; ++m) {
            const int8x16_t first = vld1q_s8(x[m]), second = vld1q_s8(x[m] + 16);
            acc[m] = add_dots<0>(acc[m], w[0], first);
            acc[m] = add_dots<1>(acc[m], w[1], first);
            acc[m] = add_dots<2>(acc[m], w[2], first);
            acc[m] = add_dots<3>(acc[m], w[3], first);
            acc[m] = add_dots<0>(acc[m], w[4], second);
            acc[m] = add_dots<1>(acc[m], w[5], second);
            acc[m] = add_dots<2>(acc[m], w[6], second);
            acc[m] = add_dots<3>(acc[m], w[7], second);
            dots[m].part[p] = (I32)acc[m];
        }
    }
#else
    for (int m = 0; m < M; ++m) {
        int32_t acc[kTileRows] = {};
        for (int j = 0; j < 8; ++j) {
            const bool is_int4 = format == PackedFormat::int4;
            const uint8_t* bytes = quants + 64 * (is_int4 ? j % 4 : j);
            for (int row = 0; row < kTileRows; ++row)
                for (int i = 0; i < 4; ++i) {
                    const uint8_t byte = bytes[4 * row + i];
                    const int32_t w = is_int4 ? ((j < 4 ? byte : byte >> 4) & 15) - 8 : static_cast<int8_t>(byte);
                    acc[row] += w * x[m][4 * j + i];
                }
        }
        __builtin_memcpy(&dots[m], acc, sizeof acc);
    }
    (void)shifts;
#endif
}

constexpr int kMostTiles = 4;          // of one task
constexpr int64_t kAheadBytes = 2048;  // that are read ahead in each tile

// Tiles that run side by side where rows are few: their sums hide each other's latency, and several streams get more out
// of the memory than one.
constexpr int tiles_aside(int rows) { return rows == 1 ? kMostTiles : rows == 2 ? 2 : 1; }

// out[t][m] = the products of activation row `rows[m]` with the 16 rows of tile t. `advance`: from a tile to the one that
// the next call takes in its place, which is read ahead where this one ends; 0 where that is not known.
template <PackedFormat format, int T, int M>
inline void tile_products(const uint8_t* const* tiles, int64_t advance, const Activations& a, const int64_t* rows,
                          Lanes (*out)[kRowBlock]) {
    constexpr int64_t bytes = block_bytes(format), ahead = kAheadBytes / bytes;
    Lanes total[T][M] = {};
    for (int64_t g = 0; g < a.groups; ++g) {
        const int64_t at = g * bytes;
        const int64_t next = at + ahead * bytes + (g + ahead < a.groups ? 0 : advance - a.groups * bytes);
        if constexpr (format == PackedFormat::bf16) {
            const float* x[M];
            for (int m = 0; m < M; ++m) x[m] = a.values + (rows[m] * a.groups + g) * kGroup;
            for (int64_t k = 0; k < kGroup; k += 2)  // two columns of a tile are a cache line
                for (int t = 0; t < T; ++t) {
                    prefetch(tiles[t] + next + k * kTileRows * 2);
                    const bf16* columns = reinterpret_cast<const bf16*>(tiles[t] + at) + k * kTileRows;
                    for (int c = 0; c < 2; ++c) {
                        const Lanes w = load(columns + c * kTileRows);
                        for (int m = 0; m < M; ++m) add_product(total[t][m], w, x[m][k + c]);
                    }
                }
        } else {
            const int8_t* x[M];
            const int32_t* shifts[M];
            for (int m = 0; m < M; ++m) {
                x[m] = a.quants + (rows[m] * a.groups + g) * kGroup;
                shifts[m] = a.shifts + rows[m] * a.groups + g;
            }
            for (int t = 0; t < T; ++t) {
                for (int64_t i = 0; i < bytes; i += 64) prefetch(tiles[t] + next + i);
                const uint8_t* block = tiles[t] + at;
                Integers dots[M];
                group_dots<format, M>(block + 2 * kTileRows, x, shifts, dots);
                const Lanes scale = load(reinterpret_cast<const bf16*>(block));
                for (int m = 0; m < M; ++m) {
                    const float x_scale = a.scales[rows[m] * a.groups + g];
                    for (int r = 0; r < kRegisters; ++r)
                        total[t][m].part[r] += __builtin_convertvector(dots[m].part[r], F32) * scale.part[r] * x_scale;
                }
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int m = 0; m < M; ++m) out[t][m] = total[t][m];
}

// The same for `count` <= kRowBlock rows and up to kMostTiles tiles.
template <PackedFormat format>
inline void tile_products(const uint8_t* const* tiles, int num_tiles, int64_t advance, const Activations& a,
                          const int64_t* rows, int count, Lanes (*out)[kRowBlock]) {
    as_constant<kRowBlock>(count, [&](auto num_rows) {
        constexpr int M = decltype(num_rows)::value, T = tiles_aside(M);
        int t = 0;
        for (; t + T <= num_tiles; t += T) tile_products<format, T, M>(tiles + t, advance, a, rows, out + t);
        for (; t < num_tiles; ++t) tile_products<format, 1, M>(tiles + t, advance, a, rows, out + t);
    });
}

inline void store_columns(float* to, const Lanes& lanes, int64_t count) {
    if (count >= kLanes)
        store(to, lanes);
    else
        store_some(to, lanes, count);
}

inline Lanes silu_mul(const Lanes& gate, const Lanes& up) {
    Lanes out;
    for (int r = 0; r < kRegisters; ++r)
        out.part[r] = gate.part[r] / (1.0f + exponential(-gate.part[r])) * up.part[r];
    return out;
}

}  // namespace
}  // namespace openk2
