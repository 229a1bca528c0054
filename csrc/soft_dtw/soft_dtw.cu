#include "soft_dtw/soft_dtw.h"

#include <climits>
#include <stdexcept>

#include "common/check.h"
#include "soft_dtw/backward.cuh"
#include "soft_dtw/forward.cuh"

namespace fastseq {
namespace {

using namespace soft_dtw;

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <class Kind>
Problem<Kind> problem(const SoftDTWCall& c) {
    using T = typename Kind::Number;
    using State = typename Kind::State;
    return {pointer<const T>(c.x),
            pointer<const T>(c.y),
            pointer<const T>(c.cost),
            pointer<const long long>(c.lengths_x),
            pointer<const long long>(c.lengths_y),
            c.batch,
            c.rows,
            c.columns,
            c.channels,
            c.band,
            static_cast<T>(1.4426950408889634 / c.gamma),
            pointer<State>(c.h),
            pointer<State>(c.states)};
}

// Zeroes the counter and flags and launches: one thread block per strip and batch entry, or with
// debug one launch per strip.
template <class Args>
void launch(const SoftDTWCall& c, void (*kernel)(Args), Args args, int threads, std::size_t shared,
            int flags_per_strip, const char* name) {
    const auto stream = pointer<CUstream_st>(c.stream);
    const int strips = (c.rows + kLanes - 1) / kLanes;
    const long long blocks = 1ll * c.batch * strips;
    if (blocks > INT_MAX / (1 + flags_per_strip)) {
        throw std::runtime_error("soft_dtw: batch * frames is too large for one launch");
    }
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
    if (c.debug) {
        for (args.only_strip = 0; args.only_strip < strips; ++args.only_strip) {
            kernel<<<c.batch, threads, shared, stream>>>(args);
            check(cudaGetLastError(), name);
        }
        return;
    }
    args.only_strip = -1;
    const std::size_t bytes = sizeof(int) * (1 + blocks * flags_per_strip);
    check(cudaMemsetAsync(args.sync, 0, bytes, stream), name);
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(args);
    check(cudaGetLastError(), name);
}

template <class Kind>
void forward(const SoftDTWCall& c, std::uintptr_t value, std::uintptr_t totals,
             std::uintptr_t sync) {
    using T = typename Kind::Number;
    const Forward<Kind> args{problem<Kind>(c), pointer<T>(value), pointer<double>(totals),
                             pointer<int>(sync), -1};
    launch(c, forward_kernel<Kind>, args, kForwardThreads, sizeof(ForwardShared<Kind>), 1,
           "soft_dtw forward");
}

template <class Kind>
void backward(const SoftDTWCall& c, std::uintptr_t grad, std::uintptr_t dx, std::uintptr_t dy,
              std::uintptr_t dcost, std::uintptr_t flux, std::uintptr_t sync) {
    using T = typename Kind::Number;
    const Backward<Kind> args{problem<Kind>(c),   pointer<const T>(grad), pointer<T>(dx),
                              pointer<T>(dy),     pointer<T>(dcost),      pointer<T>(flux),
                              pointer<int>(sync), -1};
    launch(c, backward_kernel<Kind>, args, kBackwardThreads, sizeof(BackwardShared<Kind>),
           1 + kGradientWarps, "soft_dtw backward");
}

// The one of four functions that a call wants.
template <class Function>
Function choose(const SoftDTWCall& c, Function embeddings32, Function embeddings64,
                Function costs32, Function costs64) {
    if (c.cost) return c.is_double ? costs64 : costs32;
    return c.is_double ? embeddings64 : embeddings32;
}

bool nothing(const SoftDTWCall& c) { return c.batch == 0 || c.rows == 0 || c.columns == 0; }

}  // namespace

void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t sync) {
    if (nothing(call)) return;
    DeviceGuard guard(call.device);
    choose(call, forward<Embeddings<float>>, forward<Embeddings<double>>, forward<Costs<float>>,
           forward<Costs<double>>)(call, value, totals, sync);
}

void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t flux,
                       std::uintptr_t sync) {
    if (nothing(call)) return;
    DeviceGuard guard(call.device);
    choose(call, backward<Embeddings<float>>, backward<Embeddings<double>>, backward<Costs<float>>,
           backward<Costs<double>>)(call, grad, dx, dy, dcost, flux, sync);
}

}  // namespace fastseq
