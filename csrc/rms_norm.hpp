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

// The gradients of the above in float32. Rows are summed into `d_weight` by blocks of kNormRows, each block's sum in turn.
struct RmsNormBackward {
    const float *x, *weight, *grad;  // (rows, cols), (cols,), (rows, cols)
    float *dx, *d_weight;            // (rows, cols), (cols,)
    int64_t rows, cols;
    float eps;
    float* sums;  // (norm_row_blocks, cols): working memory
};

constexpr int64_t kNormRows = 256;

inline int64_t norm_row_blocks(int64_t rows) { return (rows + kNormRows - 1) / kNormRows; }

}  // namespace openk2
