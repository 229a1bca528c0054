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
            pointer<const T>(c.bias),
            pointer<const long long>(c.lengths_x),
            pointer<const long long>(c.lengths_y),
            pointer<const double>(c.gammas),
            pointer<const long long>(c.bands),
            c.batch,
            c.rows,
            c.columns,
            c.channels,
            c.band,
            c.begin_free,
            c.end_free,
            c.patience,
            c.gamma,
            c.penalty,
            pointer<State>(c.h),
            pointer<State>(c.states)};
}

// Fills the memory that strips poll, and launches: one thread block per strip and batch entry, or
// with by_strip one launch per strip.
template <class Kind, class Args>
void launch(const SoftDTWCall& c, void (*kernel)(Args), Args args, int threads, std::size_t shared,
            const char* name) {
    using T = typename Kind::Number;
    const auto stream = pointer<CUstream_st>(c.stream);
    const int strips = args.p.strips();
    const long long blocks = 1ll * c.batch * strips;
    if (blocks > INT_MAX) {
        throw std::runtime_error("soft_dtw: batch * frames is too large for one launch");
    }
    const int centred = c.channels < kCentred<T> ? c.channels : kCentred<T>;
    if (!Kind::given) shared += centred * sizeof(T);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
    check(cudaMemsetAsync(pointer<void>(c.polled), 0xff, c.polled_bytes, stream), name);
    if (c.by_strip) {
        for (args.only_strip = 0; args.only_strip < strips; ++args.only_strip) {
            kernel<<<c.batch, threads, shared, stream>>>(args);
            check(cudaGetLastError(), name);
        }
        return;
    }
    args.only_strip = -1;
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(args);
    check(cudaGetLastError(), name);
}

template <class Kind>
void forward(const SoftDTWCall& c, std::uintptr_t value, std::uintptr_t totals,
             std::uintptr_t tickets) {
    using T = typename Kind::Number;
    const Forward<Kind> args{problem<Kind>(c), pointer<T>(value), pointer<double>(totals),
                             pointer<int>(tickets), -1};
    launch<Kind>(c, forward_kernel<Kind>, args, kForwardThreads, sizeof(ForwardShared<Kind>),
                 "soft_dtw forward");
}

template <class Kind>
void backward(const SoftDTWCall& c, std::uintptr_t grad, std::uintptr_t dx, std::uintptr_t dy,
              std::uintptr_t dcost, std::uintptr_t dbias, std::uintptr_t flux, std::uintptr_t done,
              std::uintptr_t tickets) {
    using T = typename Kind::Number;
    const Backward<Kind> args{problem<Kind>(c),  pointer<const T>(grad), pointer<T>(dx),
                              pointer<T>(dy),    pointer<T>(dcost),      pointer<T>(dbias),
                              pointer<T>(flux),  pointer<int>(done),     pointer<int>(tickets),
                              -1};
    launch<Kind>(c, backward_kernel<Kind>, args, kBackwardThreads<Kind>, sizeof(BackwardShared<Kind>),
                 "soft_dtw backward");
}

// The one of four functions for a call.
template <class Function>
Function choose(const SoftDTWCall& c, Function embeddings32, Function embeddings64,
                Function costs32, Function costs64) {
    if (c.cost) return c.is_double ? costs64 : costs32;
    return c.is_double ? embeddings64 : embeddings32;
}

bool nothing(const SoftDTWCall& c) { return c.batch == 0 || c.rows == 0 || c.columns == 0; }

}  // namespace

void soft_dtw_forward(const SoftDTWCall& call, std::uintptr_t value, std::uintptr_t totals,
                      std::uintptr_t tickets) {
    if (nothing(call)) return;
    DeviceGuard guard(call.device);
    choose(call, forward<Embeddings<float>>, forward<Embeddings<double>>, forward<Costs<float>>,
           forward<Costs<double>>)(call, value, totals, tickets);
}

void soft_dtw_backward(const SoftDTWCall& call, std::uintptr_t grad, std::uintptr_t dx,
                       std::uintptr_t dy, std::uintptr_t dcost, std::uintptr_t dbias,
                       std::uintptr_t flux, std::uintptr_t done, std::uintptr_t tickets) {
    if (nothing(call)) return;
    DeviceGuard guard(call.device);
    choose(call, backward<Embeddings<float>>, backward<Embeddings<double>>, backward<Costs<float>>,
           backward<Costs<double>>)(call, grad, dx, dy, dcost, dbias, flux, done, tickets);
}

}  // namespace fastseq
