// Soft-DTW on the GPU: what Python hands over, as addresses, sizes and a stream handle.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastseq {

struct SoftDTWCall {
    int device = 0;
    std::uintptr_t stream = 0;
    bool is_double = false;  // of all floating tensors; float otherwise
    bool by_strip = false;   // one launch per strip
    int patience = 0;        // > 0: so many polls without an answer end the kernel with an error
    std::uintptr_t x = 0, y = 0, cost = 0, lengths_x = 0, lengths_y = 0;  // 0: not given
    std::uintptr_t gammas = 0, bands = 0;                                 // 0: those below
    int batch = 0, rows = 0, columns = 0, channels = 0;
    int band = -1;  // < 0: none
    bool begin_free = false, end_free = false;
    double gamma = 1, penalty = 0;
    std::uintptr_t h = 0, states = 0;  // saved borders; states 0: no backward will come
    std::uintptr_t polled = 0;         // what the launch fills with set bits: all that is said to
    std::size_t polled_bytes = 0;      // be so before a kernel, h in the forward alone
};

// Sizes of the buffers stand in forward.cuh and backward.cuh. Nothing is done for an empty batch or
// matrix.
void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t tickets);
void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t flux,
                       std::uintptr_t done, std::uintptr_t tickets);

}  // namespace fastseq
