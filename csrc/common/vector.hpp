// Sixteen float32 lanes as one value, on every instruction set, in GCC's and Clang's vector extension: one AVX-512
// register, two of AVX2, or four of SSE or NEON. The order of every sum is the same in all of them.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace openk2 {
namespace {  // one copy per translation unit: each is compiled for its own instruction set

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

constexpr int kLanes = 16;
constexpr int kWidth = kRegisterBytes / 4;      // lanes in a register
constexpr int kRegisters = kLanes / kWidth;

typedef float F32 __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t U32 __attribute__((vector_size(kRegisterBytes)));
typedef uint16_t U16 __attribute__((vector_size(kRegisterBytes / 2)));

struct bf16 {
    uint16_t bits;
};

struct Lanes {
    F32 part[kRegisters];
};

inline F32 widen(U16 bits) {
#if defined(__AVX512F__)
    // GCC 12 makes five instructions of the line below, and without the mask warns of an undefined value.
    return (F32)((U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits) << 16);
#else
    return (F32)(__builtin_convertvector(bits, U32) << 16);
#endif
}

// Round to nearest, ties to even; a NaN becomes the quiet one, as in PyTorch.
inline U16 narrow(F32 value) {
    const U32 bits = (U32)value;
    const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U32 is_number = (U32)(value == value);
    return __builtin_convertvector((rounded & is_number) | (0x7fc0u & ~is_number), U16);
}

inline F32 all_lanes(float value) { return value - F32{}; }  // plus 0 would not be the same, and cost an addition

inline F32 load_part(const float* from) {
    F32 value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

inline F32 load_part(const bf16* from) {
    U16 bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return widen(bits);
}

inline void store_part(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value); }

inline void store_part(bf16* to, F32 value) {
    const U16 bits = narrow(value);
    __builtin_memcpy(to, &bits, sizeof bits);
}

inline F32 rounded(const float*, F32 value) { return value; }
inline F32 rounded(const bf16*, F32 value) { return widen(narrow(value)); }

template <typename T>
inline Lanes load(const T* from) {
    Lanes lanes;
    for (int r = 0; r < kRegisters; ++r) lanes.part[r] = load_part(from + r * kWidth);
    return lanes;
}

template <typename T>
inline void store(T* to, const Lanes& lanes) {
    for (int r = 0; r < kRegisters; ++r) store_part(to + r * kWidth, lanes.part[r]);
}

// The first `count` < 16 lanes; the others are 0.
template <typename T>
inline Lanes load_some(const T* from, int64_t count) {
    T buffer[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
    return load(buffer);
}

template <typename T>
inline void store_some(T* to, const Lanes& lanes, int64_t count) {
    T buffer[kLanes];
    store(buffer, lanes);
    for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

// How the steps of `for_lanes` read and write: all sixteen lanes, or the first `count` of them.
struct WholeLanes {
    template <typename T>
    Lanes load(const T* from) const {
        return openk2::load(from);
    }
    template <typename T>
    void store(T* to, const Lanes& lanes) const {
        openk2::store(to, lanes);
    }
};

struct SomeLanes {
    int64_t count;
    template <typename T>
    Lanes load(const T* from) const {
        return load_some(from, count);
    }
    template <typename T>
    void store(T* to, const Lanes& lanes) const {
        store_some(to, lanes, count);
    }
};

// body(i, lanes) for each sixteen of `count` values, from i on, the last of them perhaps fewer.
template <typename Body>
inline void for_lanes(int64_t count, const Body& body) {
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) body(i, WholeLanes{});
    if (whole < count) body(whole, SomeLanes{count - whole});
}

inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 3); }

template <int N>
struct Constant {
    static constexpr int value = N;
};

// body(Constant<n>{}), where n is `count` or `Most`, whichever is less: a loop of a few rows that the compiler unrolls.
template <int Most, typename Body>
inline void as_constant(int64_t count, const Body& body) {
    if constexpr (Most > 1)
        if (count < Most) return as_constant<Most - 1>(count, body);
    body(Constant<Most>{});
}

inline void add_squares(Lanes& sums, const Lanes& values) {
    for (int r = 0; r < kRegisters; ++r) sums.part[r] += values.part[r] * values.part[r];
}

inline Lanes multiply(const Lanes& a, const Lanes& b) {
    Lanes product;
    for (int r = 0; r < kRegisters; ++r) product.part[r] = a.part[r] * b.part[r];
    return product;
}

// lanes * scale, rounded to T.
template <typename T>
inline Lanes scaled(const Lanes& lanes, float scale) {
    Lanes product;
    for (int r = 0; r < kRegisters; ++r) product.part[r] = rounded(static_cast<const T*>(nullptr), lanes.part[r] * scale);
    return product;
}

typedef float F32x4 __attribute__((vector_size(16)));

// Halves added to halves: 16, 8, 4.
inline F32x4 sum_to_four(const Lanes& lanes) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m512 all = lanes.part[0];  // masked extracts: GCC 12 warns of an undefined value in the others
    const __m256 eight = _mm512_maskz_extractf32x8_ps(255, all, 0) + _mm512_maskz_extractf32x8_ps(255, all, 1);
#else
    const __m256 eight = lanes.part[0] + lanes.part[1];
#endif
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
    return (lanes.part[0] + lanes.part[2]) + (lanes.part[1] + lanes.part[3]);
#endif
}

// And 4, 2, 1.
inline float sum(const Lanes& lanes) {
    const F32x4 four = sum_to_four(lanes);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// The same of four at once.
inline F32x4 sums(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d) {
    typedef int32_t Order __attribute__((vector_size(16)));
    const F32x4 fours[] = {sum_to_four(a), sum_to_four(b), sum_to_four(c), sum_to_four(d)};
    F32x4 twos[2];
    for (int i = 0; i < 2; ++i)
        twos[i] = __builtin_shuffle(fours[2 * i], fours[2 * i + 1], Order{0, 1, 4, 5}) +
                  __builtin_shuffle(fours[2 * i], fours[2 * i + 1], Order{2, 3, 6, 7});
    return __builtin_shuffle(twos[0], twos[1], Order{0, 2, 4, 6}) +
           __builtin_shuffle(twos[0], twos[1], Order{1, 3, 5, 7});
}

}  // namespace
}  // namespace openk2
