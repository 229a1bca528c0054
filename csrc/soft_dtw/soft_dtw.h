// Soft-DTW on the GPU: what Python hands over, as addresses, sizes and a stream handle.
#pragma once

#include <cstdint>

namespace fastseq {

struct SoftDTWCall {
    int device;
    std::uintptr_t stream;
    bool is_double;  // of all floating tensors; float otherwise
    bool debug;      // one launch per strip and no flags
    std::uintptr_t x, y, cost, lengths_x, lengths_y;  // 0: not given
    int batch, rows, columns, channels;
    int band;  // < 0: none
    double gamma;
    std::uintptr_t h, states;  // saved borders
};

// Sizes of the buffers stand in kernels.cuh. Nothing is done for an empty batch or matrix.
void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t sync);
void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t flux,
                       std::uintptr_t sync);

}  // namespace fastseq
