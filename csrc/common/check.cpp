#include "common/check.h"

#include <stdexcept>
#include <string>

namespace fastseq {
namespace {

std::string version(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string advice(cudaError_t code) {
    switch (code) {
        case cudaErrorInsufficientDriver: {
            int driver = 0;
            cudaDriverGetVersion(&driver);
            return "; the extension carries CUDA runtime " + version(CUDART_VERSION) +
                   " and the driver supports CUDA " + version(driver) +
                   ": update the NVIDIA driver, or rebuild with an older nvcc";
        }
        case cudaErrorNoDevice:
            return "; check nvidia-smi and CUDA_VISIBLE_DEVICES";
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorUnsupportedPtxVersion:
            return "; rebuild fastseq with TORCH_CUDA_ARCH_LIST naming this GPU, for example 9.0a";
        default:
            return "";
    }
}

}  // namespace

void check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    int driver = 1;
    if (code == cudaErrorInsufficientDriver) cudaDriverGetVersion(&driver);
    if (driver == 0) {
        throw std::runtime_error(std::string(what) + ": no NVIDIA driver on this machine");
    }
    cudaGetLastError();  // a failed launch must not be reported again by the next check
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(code) + ": " +
                             cudaGetErrorString(code) + advice(code));
}

}  // namespace fastseq
