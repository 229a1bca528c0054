// Return codes of the CUDA runtime as exceptions, and the current device as a scope.
#pragma once

#include <cuda_runtime_api.h>

namespace fastseq {

// Throws std::runtime_error "<what>: <name>: <description>; <what to do>" unless code is
// cudaSuccess.
void check(cudaError_t code, const char* what);

// Makes a device current, and the caller's device again when the scope ends.
class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(previous_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int previous_ = 0;
};

}  // namespace fastseq
