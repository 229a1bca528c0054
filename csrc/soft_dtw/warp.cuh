// One warp on the device or, for tests, 32 lanes in arrays on the host; and the few mathematical
// functions in which the two differ. No includes on the device, so that NVRTC can compile it.
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

// The hardware's approximations: 2^-22 relative (absolute for the logarithm of [1, 3]), which
// costs the gradient at most 2e-6.
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
// With one Newton step it rounds almost like 1 / x: a biased reciprocal would lose mass at each
// step.
FASTSEQ_FN float reciprocal(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return fmaf(out, fmaf(-x, out, 1.0f), out);
}
FASTSEQ_FN float lowest(float a, float b) { return fminf(a, b); }
FASTSEQ_FN float highest(float a, float b) { return fmaxf(a, b); }
FASTSEQ_FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
FASTSEQ_FN double power2(double x) { return exp2(x); }
FASTSEQ_FN double log2_of(double x) { return log2(x); }
FASTSEQ_FN double reciprocal(double x) { return 1.0 / x; }
FASTSEQ_FN double lowest(double a, double b) { return fmin(a, b); }
FASTSEQ_FN double highest(double a, double b) { return fmax(a, b); }
FASTSEQ_FN double fused(double a, double b, double c) { return fma(a, b, c); }

// Hides the variable's value from the compiler, which otherwise computes dependent numbers ahead
// for a whole loop, in as many registers.
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

#else

inline void forget(int&) {}
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
inline T highest(T a, T b) {
    return std::fmax(a, b);
}
template <class T>
inline T fused(T a, T b, T c) {
    return a * b + c;
}

#endif

// FASTSEQ_SIMULATED: a test runs the kernels on the CPU and supplies the shuffles itself.
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
    // Each lane gets the value of lane `from`, the same one for all, or of the lane from(lane).
    template <class T>
    static FASTSEQ_FN T broadcast(const Reg<T>& reg, int from) {
        return __shfl_sync(0xffffffffu, reg.value, from);
    }
    template <class T, class F>
    static FASTSEQ_FN Reg<T> pick(const Reg<T>& reg, const F& from) {
        return {__shfl_sync(0xffffffffu, reg.value, from(static_cast<int>(threadIdx.x % kLanes)))};
    }
    // Sums over the lanes whose numbers differ in the bits from `least` up to below `end`.
    template <int least, int end, class T>
    static FASTSEQ_FN Reg<T> sum(Reg<T> reg) {
        FASTSEQ_UNROLL(5)
        for (int mask = end / 2; mask >= least; mask /= 2) {
            reg.value += __shfl_xor_sync(0xffffffffu, reg.value, mask);
        }
        return reg;
    }
    static FASTSEQ_FN bool any(const Reg<bool>& reg) {
        return __any_sync(0xffffffffu, reg.value);
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
    template <class T>
    static T broadcast(const Reg<T>& reg, int from) {
        return reg[from];
    }
    template <class T, class F>
    static Reg<T> pick(const Reg<T>& reg, const F& from) {
        Reg<T> out;
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = reg[from(lane)];
        return out;
    }
    template <int least, int end, class T>
    static Reg<T> sum(Reg<T> reg) {
        for (int mask = end / 2; mask >= least; mask /= 2) {
            const Reg<T> old = reg;
            for (int lane = 0; lane < kLanes; ++lane) reg[lane] = old[lane] + old[lane ^ mask];
        }
        return reg;
    }
    static bool any(const Reg<bool>& reg) {
        for (bool value : reg.values)
            if (value) return true;
        return false;
    }
};

#endif

}  // namespace soft_dtw
}  // namespace fastseq
