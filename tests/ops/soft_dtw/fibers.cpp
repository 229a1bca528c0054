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

#define FASTSEQ_EXPORT(K, T, suffix)                                                            \
    extern "C" int forward_##suffix(const Problem<K>* p, Schedule schedule, T* value,           \
                                    double* totals, int* sync) {                                \
        return launch<Forward<K>>(schedule, forward_kernel<K>, {*p, value, totals, sync, -1},   \
                                  kForwardThreads, sizeof(ForwardShared<K>), 1);                \
    }                                                                                           \
    extern "C" int backward_##suffix(const Problem<K>* p, Schedule schedule, const T* grad,     \
                                     T* dx, T* dy, T* dcost, T* flux, int* sync) {              \
        return launch<Backward<K>>(schedule, backward_kernel<K>,                                \
                                   {*p, grad, dx, dy, dcost, flux, sync, -1}, kBackwardThreads, \
                                   sizeof(BackwardShared<K>), 1 + kGradientWarps);              \
    }                                                                                           \
    extern "C" int one_forward_##suffix(const Forward<K>* args, Schedule how, unsigned blocks,  \
                                        unsigned threads, unsigned shared) {                    \
        return !fibers::launch(blocks, threads, shared, how.resident, how.seed,                 \
                               [&] { forward_kernel<K>(*args); });                              \
    }                                                                                           \
    extern "C" int one_backward_##suffix(const Backward<K>* args, Schedule how, unsigned blocks, \
                                         unsigned threads, unsigned shared) {                   \
        return !fibers::launch(blocks, threads, shared, how.resident, how.seed,                 \
                               [&] { backward_kernel<K>(*args); });                             \
    }

#define FASTSEQ_SIZES(K, suffix)                                             \
    extern "C" int shared_bytes_##suffix(int backward) {                    \
        return backward ? sizeof(BackwardShared<K>) : sizeof(ForwardShared<K>); \
    }                                                                       \
    extern "C" int arguments_bytes_##suffix(int backward) {                 \
        return backward ? sizeof(Backward<K>) : sizeof(Forward<K>);         \
    }

extern "C" int threads(int backward) { return backward ? kBackwardThreads : kForwardThreads; }

#define FASTSEQ_BOTH(K, T, suffix) FASTSEQ_EXPORT(K, T, suffix) FASTSEQ_SIZES(K, suffix)
FASTSEQ_BOTH(Embeddings<float>, float, Embeddings_f32)
FASTSEQ_BOTH(Embeddings<double>, double, Embeddings_f64)
FASTSEQ_BOTH(Costs<float>, float, Costs_f32)
FASTSEQ_BOTH(Costs<double>, double, Costs_f64)
