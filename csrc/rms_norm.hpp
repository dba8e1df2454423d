#pragma once

#include <stdint.h>

namespace openk2 {

// out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight, all contiguous; float32, or bfloat16 with float32
// statistics. `out` may be `x`.
struct RmsNorm {
    const void* x;       // (rows, cols)
    const void* weight;  // (cols,)
    void* out;           // (rows, cols)
    int64_t rows;
    int64_t cols;
    float eps;
    bool is_bf16;
};

}  // namespace openk2
