#include "common/check.h"
#include "common/probe.h"

namespace fastseq {
namespace {

__global__ void probe_kernel(int* p_out) {
#ifdef __CUDA_ARCH__
    p_out[0] = __CUDA_ARCH__;
#if defined(__CUDA_ARCH_SPECIFIC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    p_out[1] = 1;
#else
    p_out[1] = 0;
#endif
#endif
}

}  // namespace

int runtime_version() {
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
    return version;
}

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
    return version;
}

int device_count() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    return count;
}

Probe probe(int device, std::uintptr_t stream_handle) {
    DeviceGuard guard(device);
    const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
          "cudaDeviceGetAttribute");
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, probe_kernel), "cudaFuncGetAttributes");

    int* p_out = nullptr;
    check(cudaMalloc(&p_out, 2 * sizeof(int)), "cudaMalloc");
    int out[2] = {0, 0};
    probe_kernel<<<1, 1, 0, stream>>>(p_out);
    cudaError_t code = cudaGetLastError();
    if (code == cudaSuccess) {
        code = cudaMemcpyAsync(out, p_out, sizeof(out), cudaMemcpyDeviceToHost, stream);
    }
    if (code == cudaSuccess) code = cudaStreamSynchronize(stream);
    const cudaError_t freed = cudaFree(p_out);
    check(code, "probe_kernel");
    check(freed, "cudaFree");
    return {10 * major + minor, out[0] / 10, out[1], attributes.binaryVersion};
}

}  // namespace fastseq
