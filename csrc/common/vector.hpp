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

inline F32 widen(U16 bits) { return (F32)(__builtin_convertvector(bits, U32) << 16); }

// Round to nearest, ties to even; a NaN becomes the quiet one, as in PyTorch.
inline U16 narrow(F32 value) {
    const U32 bits = (U32)value;
    const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U32 is_number = (U32)(value == value);
    return __builtin_convertvector((rounded & is_number) | (0x7fc0u & ~is_number), U16);
}

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

// Halves added to halves: 16, 8, 4, 2, 1.
inline float sum(const Lanes& lanes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256 eight = lanes.part[0] + lanes.part[1];
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    float buffer[kLanes];
    store(buffer, lanes);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) buffer[i] += buffer[i + width];
    return buffer[0];
#endif
}

}  // namespace
}  // namespace openk2
