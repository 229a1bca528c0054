// Soft-DTW on the GPU: arguments from Python, as addresses, sizes and a stream handle.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastseq {

struct SoftDTWCall {
    int device = 0;
    std::uintptr_t stream = 0;
    bool is_double = false;  // dtype of all floating tensors: double, otherwise float
    bool by_strip = false;   // one launch per strip
    int patience = 0;        // > 0: so many polls without an answer end the kernel with an error
    std::uintptr_t x = 0, y = 0, cost = 0, bias = 0;  // 0: not passed
    std::uintptr_t lengths_x = 0, lengths_y = 0;      // 0: not passed
    std::uintptr_t gammas = 0, bands = 0;             // 0: gamma and band below
    int batch = 0, rows = 0, columns = 0, channels = 0;
    int band = -1;  // < 0: no band
    bool begin_free = false, end_free = false;
    double gamma = 1, penalty = 0;
    std::uintptr_t h = 0, states = 0;  // saved borders; states 0: no backward follows
    std::uintptr_t polled = 0;         // memory that the launch fills with set bits: all that must
    std::size_t polled_bytes = 0;      // be so before a kernel; h in the forward only
};

// Sizes of the buffers are in forward.cuh and backward.cuh. An empty batch or matrix launches
// nothing.
void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t tickets);
void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t dbias,
                       std::uintptr_t flux, std::uintptr_t done, std::uintptr_t tickets);

}  // namespace fastseq
