// a * b + c with one rounding, the same bits in every instruction set: a processor without the instruction computes
// them from float64.
#pragma once

#include "vector.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace openk2 {
namespace {

#if defined(__AVX512F__)
inline F32 fused(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
inline F32 fused(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__aarch64__)
inline F32 fused(F32 a, F32 b, F32 c) { return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
typedef double F64 __attribute__((vector_size(2 * kRegisterBytes)));
typedef int64_t I64 __attribute__((vector_size(2 * kRegisterBytes)));

// The product is exact in float64, its sum with c rounded to odd: rounded again, it is as if rounded once (Boldo and
// Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
// Not inlined: many times the size of what it stands for.
__attribute__((noinline, unused)) F32 fused(F32 a, F32 b, F32 c) {
    const F64 product = __builtin_convertvector(a, F64) * __builtin_convertvector(b, F64);
    const F64 addend = __builtin_convertvector(c, F64);
    const F64 sum = product + addend, back = sum - product;
    const F64 error = (product - (sum - back)) + (addend - back);
    I64 bits = (I64)sum;
    const I64 is_even = (bits & 1) - 1, is_finite = sum - sum == 0.0;
    const I64 away = (error > 0.0) == (sum > 0.0);  // -1 where the sum is too small in magnitude
    bits += (error != 0.0) & is_even & is_finite & ((away & 2) - 1);
    return __builtin_convertvector((F64)bits, F32);
}
#endif

inline void add_product(Lanes& total, const Lanes& a, const Lanes& b) {
    for (int r = 0; r < kRegisters; ++r) total.part[r] = fused(a.part[r], b.part[r], total.part[r]);
}

inline void add_product(Lanes& total, const Lanes& a, float b) {
    for (int r = 0; r < kRegisters; ++r) total.part[r] = fused(a.part[r], all_lanes(b), total.part[r]);
}

}  // namespace
}  // namespace openk2
