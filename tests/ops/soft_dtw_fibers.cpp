// The kernels of csrc/soft_dtw on the CPU, as cuda_fibers.h runs them. The functions return 0, or 1
// when the thread blocks wait for each other for ever. forward_* and backward_* launch as soft_dtw.cu
// does; one_* make one launch with the arguments and sizes of the caller.
#include "cuda_fibers.h"
#include "soft_dtw/backward.cuh"
#include "soft_dtw/forward.cuh"

using namespace fastseq::soft_dtw;

namespace {

struct Schedule {
    unsigned resident, seed;
    int debug;
};

template <class Args>
int launch(const Schedule& schedule, void (*kernel)(Args), Args args, int threads, size_t shared,
           int flags_per_strip) {
    const int strips = args.p.strips(), blocks = args.p.batch * strips;
    for (int k = 0; k < 1 + blocks * flags_per_strip; ++k) args.sync[k] = 0;
    for (int s = 0; s < (schedule.debug ? strips : 1); ++s) {
        args.only_strip = schedule.debug ? s : -1;
        if (!fibers::launch(schedule.debug ? args.p.batch : blocks, threads, shared,
                            schedule.resident, schedule.seed + s, [&] { kernel(args); })) {
            return 1;
        }
    }
    return 0;
}

}  // namespace

#define FASTSEQ_EXPORT(T, suffix)                                                               \
    extern "C" int forward_##suffix(const Problem<T>* p, Schedule schedule, T* value,           \
                                    double* totals, int* sync) {                                \
        return launch<Forward<T>>(schedule, forward_kernel<T>, {*p, value, totals, sync, -1},   \
                                  kForwardThreads, sizeof(ForwardShared<T>), 1);                \
    }                                                                                           \
    extern "C" int backward_##suffix(const Problem<T>* p, Schedule schedule, const T* grad,     \
                                     T* dx, T* dy, T* dcost, T* flux, int* sync) {              \
        return launch<Backward<T>>(schedule, backward_kernel<T>,                                \
                                   {*p, grad, dx, dy, dcost, flux, sync, -1}, kBackwardThreads, \
                                   sizeof(BackwardShared<T>), 1 + kGradientWarps);              \
    }                                                                                           \
    extern "C" int one_forward_##suffix(const Forward<T>* args, Schedule how, unsigned blocks,  \
                                        unsigned threads, unsigned shared) {                    \
        return !fibers::launch(blocks, threads, shared, how.resident, how.seed,                 \
                               [&] { forward_kernel<T>(*args); });                              \
    }                                                                                           \
    extern "C" int one_backward_##suffix(const Backward<T>* args, Schedule how, unsigned blocks, \
                                         unsigned threads, unsigned shared) {                   \
        return !fibers::launch(blocks, threads, shared, how.resident, how.seed,                 \
                               [&] { backward_kernel<T>(*args); });                             \
    }

extern "C" int shared_bytes(int backward, int is_double) {
    if (backward) return is_double ? sizeof(BackwardShared<double>) : sizeof(BackwardShared<float>);
    return is_double ? sizeof(ForwardShared<double>) : sizeof(ForwardShared<float>);
}

extern "C" int arguments_bytes(int backward, int is_double) {
    if (backward) return is_double ? sizeof(Backward<double>) : sizeof(Backward<float>);
    return is_double ? sizeof(Forward<double>) : sizeof(Forward<float>);
}

extern "C" int threads(int backward) { return backward ? kBackwardThreads : kForwardThreads; }

FASTSEQ_EXPORT(float, f32)
FASTSEQ_EXPORT(double, f64)
