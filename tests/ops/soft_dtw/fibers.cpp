// The kernels of csrc/soft_dtw on the CPU, run by cuda_fibers.h. The functions return 0, or 1 in a
// deadlock of the thread blocks. forward_* and backward_* launch as soft_dtw.cu does; one_* make one
// launch with the arguments and sizes of the caller, who also sets all bits of the buffers for which
// soft_dtw.cu does so.
#include "cuda_fibers.h"
#include "soft_dtw/backward.cuh"
#include "soft_dtw/forward.cuh"

namespace fastseq {
namespace soft_dtw {

template <int pass, class T>
void add_product(DeviceWarp::Reg<Sums<T>>& sums, DeviceWarp::Reg<Sums<T>>& rest,
                 const DeviceWarp::Reg<Left<T>>& left, const DeviceWarp::Reg<Right<T>>& right) {
    const std::pair<Left<T>, Right<T>> mine{left.value, right.value};
    const auto all = fibers::of_all_lanes(mine);
    add_product_of_lane<pass>(
        sums.value, rest.value, [&](int lane) -> const Left<T>& { return all[lane]->first; },
        [&](int lane) -> const Right<T>& { return all[lane]->second; }, threadIdx.x % kLanes);
    fibers::arrive(fibers::warp(), 32);  // the other lanes read this lane's value
}

}  // namespace soft_dtw
}  // namespace fastseq

using namespace fastseq::soft_dtw;

namespace {

struct Schedule {
    unsigned resident, seed;
    int by_strip;
};

template <class Args>
int run(const Schedule& how, void (*kernel)(Args), const Args& args, unsigned blocks,
        unsigned threads, unsigned shared) {
    return !fibers::launch(blocks, threads, shared, how.resident, how.seed, [&] { kernel(args); });
}

template <class Kind>
size_t centre_bytes(const Problem<Kind>& p) {
    using T = typename Kind::Number;
    return Kind::given ? 0 : sizeof(T) * lesser(p.channels, kCentred<T>);
}

template <class Kind, class Args>
int launch(const Schedule& how, void (*kernel)(Args), Args args, int threads, size_t shared) {
    const int strips = args.p.strips();
    for (int s = 0; s < (how.by_strip ? strips : 1); ++s) {
        args.only_strip = how.by_strip ? s : -1;
        const Schedule now{how.resident, how.seed + s, how.by_strip};
        const int blocks = how.by_strip ? args.p.batch : args.p.batch * strips;
        if (run(now, kernel, args, blocks, threads, shared + centre_bytes(args.p))) return 1;
    }
    return 0;
}

}  // namespace

#define FASTSEQ_EXPORT(K, T, suffix)                                                            \
    extern "C" int forward_##suffix(const Problem<K>* p, Schedule how, T* value, double* totals, \
                                    int* tickets) {                                             \
        return launch<K>(how, forward_kernel<K>, {*p, value, totals, tickets, -1},              \
                         kForwardThreads, sizeof(ForwardShared<K>));                            \
    }                                                                                           \
    extern "C" int backward_##suffix(const Problem<K>* p, Schedule how, const T* grad, T* dx,   \
                                     T* dy, T* dcost, T* dbias, T* flux, int* done,             \
                                     int* tickets) {                                            \
        return launch<K>(how, backward_kernel<K>,                                               \
                         {*p, grad, dx, dy, dcost, dbias, flux, done, tickets, -1},             \
                         kBackwardThreads<K>,                                                   \
                         sizeof(BackwardShared<K>));                                            \
    }                                                                                           \
    extern "C" int one_forward_##suffix(const Forward<K>* args, Schedule how, unsigned blocks,  \
                                        unsigned threads, unsigned shared) {                    \
        return run(how, forward_kernel<K>, *args, blocks, threads, shared);                     \
    }                                                                                           \
    extern "C" int one_backward_##suffix(const Backward<K>* args, Schedule how, unsigned blocks, \
                                         unsigned threads, unsigned shared) {                   \
        return run(how, backward_kernel<K>, *args, blocks, threads, shared);                    \
    }                                                                                           \
    extern "C" int shared_bytes_##suffix(int backward) {                                        \
        return backward ? sizeof(BackwardShared<K>) : sizeof(ForwardShared<K>);                 \
    }                                                                                           \
    extern "C" int threads_##suffix(int backward) {                                             \
        return backward ? kBackwardThreads<K> : kForwardThreads;                                \
    }                                                                                           \
    extern "C" int arguments_bytes_##suffix(int backward) {                                     \
        return backward ? sizeof(Backward<K>) : sizeof(Forward<K>);                             \
    }

#include "kinds.h"

extern "C" int most_centred(int is_double) { return is_double ? kCentred<double> : kCentred<float>; }

// Leaves out one of the places where threads wait for each other (-1: none). Returns the number of
// places met so far.
extern "C" int leave_out(int place) {
    fibers::left_out = place;
    return static_cast<int>(fibers::places.size());
}
extern "C" const char* place_name(int place) {
    static std::string name;
    for (const auto& [key, number] : fibers::places)
        if (number == place) {
            name = key.first.substr(key.first.rfind('/') + 1) + ":" + std::to_string(key.second);
        }
    return name.c_str();
}
