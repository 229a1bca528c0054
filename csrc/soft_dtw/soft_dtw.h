// Soft-DTW on the GPU: what Python hands over, as addresses, sizes and a stream handle.
#pragma once

#include <cstdint>

namespace fastseq {

struct SoftDTWCall {
    int device = 0;
    std::uintptr_t stream = 0;
    bool is_double = false;  // of all floating tensors; float otherwise
    bool debug = false;      // one launch per strip and no flags
    std::uintptr_t x = 0, y = 0, cost = 0, lengths_x = 0, lengths_y = 0;  // 0: not given
    int batch = 0, rows = 0, columns = 0, channels = 0;
    int band = -1;  // < 0: none
    double gamma = 1;
    std::uintptr_t h = 0, states = 0;  // saved borders; states 0: no backward will come
};

// Sizes of the buffers stand in forward.cuh and backward.cuh. Nothing is done for an empty batch or
// matrix.
void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t sync);
void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t flux,
                       std::uintptr_t sync);

}  // namespace fastseq
