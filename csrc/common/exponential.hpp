// The exponential of a register of float32.
#pragma once

#include "vector.hpp"

namespace openk2 {
namespace {

// exp in steps that every instruction set rounds alike; at most 1.2 units of the last place off (4 million arguments
// against float64). Cody and Waite's reduction by ln 2, then the Taylor polynomial of degree 7 on |r| <= ln 2 / 2.
inline F32 exponential(F32 x) {
    x = x > 88.0f ? (F32{} + 88.0f) : x;
    x = x < -87.0f ? (F32{} - 87.0f) : x;
    const F32 shifted = x * 1.44269504f + 12582912.0f;
    const F32 n = shifted - 12582912.0f;
    const F32 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    F32 p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const U32 power = ((U32)shifted - 0x4b400000u + 127u) << 23;
    return p * (F32)power;
}

}  // namespace
}  // namespace openk2
