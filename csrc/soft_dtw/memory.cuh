// How numbers pass between thread blocks through global memory. A number on a border is its own
// flag: the border is filled with one pattern of bits before the launch, and a reader polls a
// number until the pattern is gone. That needs no fence, as nothing else has to be visible. Only
// dy, to which strips add in turn, is passed on by a flag and fences.
#pragma once

#include "warp.cuh"

namespace fastseq {
namespace soft_dtw {

template <class T>
struct alignas(16) Quad {
    T at[4];
};

#ifdef __CUDACC__

// All bits set: a NaN that no arithmetic produces on the device, and that seal() never lets
// through.
FASTSEQ_FN bool pending(float v) { return __float_as_uint(v) == 0xffffffffu; }
FASTSEQ_FN bool pending(double v) { return __double_as_longlong(v) == -1ll; }
FASTSEQ_FN float seal(float v) { return v == v ? v : __uint_as_float(0x7fffffffu); }
FASTSEQ_FN double seal(double v) {
    return v == v ? v : __longlong_as_double(0x7fffffffffffffffll);
}

// Relaxed, for the whole device: past L1, complete or not at all, in no order with other accesses.
FASTSEQ_FN float load_now(const float* address) {
    float v;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(address));
    return v;
}
FASTSEQ_FN double load_now(const double* address) {
    double v;
    asm volatile("ld.relaxed.gpu.global.f64 %0, [%1];" : "=d"(v) : "l"(address));
    return v;
}
FASTSEQ_FN int load_now(const int* address) {
    int v;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}
FASTSEQ_FN void store_now(float* address, float v) {
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(address), "f"(v));
}
FASTSEQ_FN void store_now(double* address, double v) {
    asm volatile("st.relaxed.gpu.global.f64 [%0], %1;" ::"l"(address), "d"(v));
}
FASTSEQ_FN void store_now(int* address, int v) {
    asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(v));
}

// Between polls the warp sleeps, so that it uses no issue slots of working warps. `patience` > 0
// bounds the number of polls: beyond it the kernel ends with an error.
FASTSEQ_FN void rest(int& polls, int patience) {
    if (patience > 0 && polls == patience) asm volatile("trap;");
    if (polls > 2) asm volatile("nanosleep.u32 100;");
    if (polls < 0x7fffffff) ++polls;
}
template <class T>
FASTSEQ_FN void rest_until_there(const T*, int& polls, int patience) {
    rest(polls, patience);
}
FASTSEQ_FN void rest_until(const int*, int, int& polls, int patience) { rest(polls, patience); }

// Writes of this thread block before its last barrier are visible to the warp of a thread whose
// wait_until() for that flag and value has returned, and after its next barrier to its thread
// block.
FASTSEQ_FN void publish(int* flag, int value) {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    store_now(flag, value);
}
FASTSEQ_FN int acquire(const int* flag) {
    int v;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    return v;
}
FASTSEQ_FN bool behind(const int* flag, int target) { return load_now(flag) < target; }

// Numbers of dy, passed on by a flag; past L1, which may have older ones.
template <class T>
FASTSEQ_FN T load_handed(const T* address) {
    return __ldcg(address);
}
FASTSEQ_FN Quad<float> load_handed(const Quad<float>* address) {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(address));
    return {v.x, v.y, v.z, v.w};
}
FASTSEQ_FN Quad<double> load_handed(const Quad<double>* address) {
    const auto* halves = reinterpret_cast<const double2*>(address);
    const double2 a = __ldcg(halves), b = __ldcg(halves + 1);
    return {a.x, a.y, b.x, b.y};
}
template <class T>
FASTSEQ_FN void store_handed(T* address, T v) {
    *address = v;
}

#elif !defined(FASTSEQ_SIMULATED)

template <class T>
inline T load_handed(const T* address) {
    return *address;
}
template <class T>
inline void store_handed(T* address, T v) {
    *address = v;
}

#endif

// FASTSEQ_SIMULATED: a test supplies the functions above itself.
#if defined(__CUDACC__) || defined(FASTSEQ_SIMULATED)

template <class T>
FASTSEQ_FN T wait_for(const T* address, int patience) {
    T v = load_now(address);
    for (int polls = 0; pending(v); v = load_now(address)) {
        rest_until_there(address, polls, patience);
    }
    return v;
}

// Polls empty no cache; only the last read, which finds the awaited value, does.
FASTSEQ_FN void wait_until(const int* flag, int target, int patience) {
    for (int polls = 0; behind(flag, target);) rest_until(flag, target, polls, patience);
    acquire(flag);
}

// A border as one warp reads it, from left to right (step 1) or from right to left (-1). Lane k of
// `now` has column first + k. Columns come 32 at a time, and `kAhead` of them are requested while
// those before are processed. They go into a separate register, as reading the other would wait for
// them. Columns below `begin` and from `end` on are 0 and never polled.
template <class T, int step, int kAhead>
struct Feed {
    const T* border;
    int begin, end, patience;
    int first;
    DeviceWarp::Reg<T> now;
    T next;

    FASTSEQ_FN bool holds(int column) const { return column >= begin && column < end; }

    // Requests chunk c of the columns that begin at `from`.
    FASTSEQ_FN void ask(int from, int c) {
        const int lane = threadIdx.x % kLanes, column = from + lane;
        if (lane / kAhead == c) next = holds(column) ? load_now(border + column) : T(0);
    }
    // Returns once column first + k has arrived, and those of its chunk that follow it.
    FASTSEQ_FN void open(int k) {
        constexpr int kChunks = kLanes / kAhead;
        if (k % kAhead != (step > 0 ? 0 : kAhead - 1)) return;
        const int c = k / kAhead, lane = threadIdx.x % kLanes;
        if (lane / kAhead == c) now.value = next;
        for (int polls = 0;;) {
            const bool missing = lane / kAhead == c && pending(now.value);
            if (!DeviceWarp::any({missing})) break;
            if (missing) {
                rest_until_there(border + first + lane, polls, patience);
                now.value = load_now(border + first + lane);
            }
        }
        const int after = c + step;
        const bool here = after >= 0 && after < kChunks;
        ask(here ? first : first + step * kLanes, (after + kChunks) % kChunks);
    }
    FASTSEQ_FN T at(int k) const { return DeviceWarp::broadcast(now, k); }
};

#endif

}  // namespace soft_dtw
}  // namespace fastseq
