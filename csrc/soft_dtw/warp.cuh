// One warp on the device or, for tests, 32 lanes in arrays on the host; and the few functions of
// mathematics and of memory ordering in which the two differ. No includes on the device, so that
// NVRTC takes it too.
#pragma once

#ifdef __CUDACC__
#define FASTSEQ_FN __device__ __forceinline__
#define FASTSEQ_UNROLL(count) _Pragma(FASTSEQ_TEXT(unroll count))
#define FASTSEQ_TEXT(text) #text
#else
#include <cmath>
#define FASTSEQ_FN inline
#define FASTSEQ_UNROLL(count)
#endif

namespace fastseq {
namespace soft_dtw {

constexpr int kLanes = 32;

FASTSEQ_FN int lesser(int a, int b) { return a < b ? a : b; }
FASTSEQ_FN int larger(int a, int b) { return a > b ? a : b; }

#ifdef __CUDACC__

// The approximations of the hardware: 2^-22 relative (absolute for the logarithm of [1, 3]), which
// costs the gradient 2e-6 at most.
FASTSEQ_FN float power2(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
FASTSEQ_FN float log2_of(float x) {
    float out;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
// One Newton step rounds nearly as 1 / x does: a biased reciprocal would lose mass at every step.
FASTSEQ_FN float reciprocal(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return fmaf(out, fmaf(-x, out, 1.0f), out);
}
FASTSEQ_FN float lowest(float a, float b) { return fminf(a, b); }
FASTSEQ_FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
FASTSEQ_FN double power2(double x) { return exp2(x); }
FASTSEQ_FN double log2_of(double x) { return log2(x); }
FASTSEQ_FN double reciprocal(double x) { return 1.0 / x; }
FASTSEQ_FN double lowest(double a, double b) { return fmin(a, b); }
FASTSEQ_FN double fused(double a, double b, double c) { return fma(a, b, c); }

// The compiler no longer knows what the variable holds. Before an unrolled loop inside another one
// it keeps it from computing all addresses and comparisons ahead, in as many registers.
template <class T>
FASTSEQ_FN void forget(T*& address) {
    asm volatile("" : "+l"(address));
}
FASTSEQ_FN void forget(int& number) { asm volatile("" : "+r"(number)); }

// Dynamic shared memory as one structure.
template <class T>
FASTSEQ_FN T& shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return *reinterpret_cast<T*>(bytes);
}

// A barrier for `count` threads of the thread block, whole warps; 0 is __syncthreads().
template <int id, int count>
FASTSEQ_FN void meet() {
    asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(count) : "memory");
}

// Between thread blocks: what a thread wrote before publish() is seen by a thread whose wait_for()
// returned. Without a flag (one launch per strip) the launches order the memory.
FASTSEQ_FN void publish(int* p_flag, int value) {
    if (!p_flag) return;
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p_flag), "r"(value) : "memory");
}
FASTSEQ_FN void wait_for(const int* p_flag, int value) {
    if (!p_flag) return;
    int seen;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(p_flag) : "memory");
    } while (seen < value);
}

#else

inline float power2(float x) { return std::exp2(x); }
inline float log2_of(float x) { return std::log2(x); }
inline double power2(double x) { return std::exp2(x); }
inline double log2_of(double x) { return std::log2(x); }
template <class T>
inline T reciprocal(T x) {
    return 1 / x;
}
template <class T>
inline T lowest(T a, T b) {
    return std::fmin(a, b);
}
template <class T>
inline T fused(T a, T b, T c) {
    return a * b + c;
}

template <class T>
inline void forget(T&) {}

#endif

// FASTSEQ_SIMULATED: a test runs the kernels on the CPU and brings the shuffles itself.
#if defined(__CUDACC__) || defined(FASTSEQ_SIMULATED)

struct DeviceWarp {
    template <class T>
    struct Reg {
        T value;
        FASTSEQ_FN T& operator[](int) { return value; }
        FASTSEQ_FN const T& operator[](int) const { return value; }
    };

    template <class F>
    static FASTSEQ_FN void each(const F& body) {
        body(static_cast<int>(threadIdx.x % kLanes));
    }
    // Each lane gets the value of the lane above it; the first lane gets `first`.
    template <class T>
    static FASTSEQ_FN Reg<T> from_above(const Reg<T>& reg, T first) {
        const T got = __shfl_up_sync(0xffffffffu, reg.value, 1);
        return {threadIdx.x % kLanes == 0 ? first : got};
    }
    // Each lane gets the value of the lane below it; the last lane gets `last`.
    template <class T>
    static FASTSEQ_FN Reg<T> from_below(const Reg<T>& reg, T last) {
        const T got = __shfl_down_sync(0xffffffffu, reg.value, 1);
        return {threadIdx.x % kLanes == kLanes - 1 ? last : got};
    }
    static FASTSEQ_FN double sum(const Reg<double>& reg) {
        double total = reg.value;
        for (int step = kLanes / 2; step > 0; step /= 2) {
            total += __shfl_xor_sync(0xffffffffu, total, step);
        }
        return total;
    }
};

#endif
#ifndef __CUDACC__

struct HostWarp {
    template <class T>
    struct Reg {
        T values[kLanes];
        T& operator[](int lane) { return values[lane]; }
        const T& operator[](int lane) const { return values[lane]; }
    };

    template <class F>
    static void each(const F& body) {
        for (int lane = 0; lane < kLanes; ++lane) body(lane);
    }
    template <class T>
    static Reg<T> from_above(const Reg<T>& reg, T first) {
        Reg<T> out;
        out[0] = first;
        for (int lane = 1; lane < kLanes; ++lane) out[lane] = reg[lane - 1];
        return out;
    }
    template <class T>
    static Reg<T> from_below(const Reg<T>& reg, T last) {
        Reg<T> out;
        for (int lane = 0; lane + 1 < kLanes; ++lane) out[lane] = reg[lane + 1];
        out[kLanes - 1] = last;
        return out;
    }
    static double sum(Reg<double> reg) {
        for (int step = kLanes / 2; step > 0; step /= 2) {
            const Reg<double> old = reg;
            for (int lane = 0; lane < kLanes; ++lane) reg[lane] = old[lane] + old[lane ^ step];
        }
        return reg[0];
    }
};

#endif

}  // namespace soft_dtw
}  // namespace fastseq
