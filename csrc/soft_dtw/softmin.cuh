// The soft minimum of the recursion: the types with which a cell is compiled. The definitions are
// in fastseq/ops/soft_dtw/README.md.
#pragma once

#include "warp.cuh"

namespace fastseq {
namespace soft_dtw {

// The soft minimum of three predecessors relative to the least of them, and its derivatives with
// respect to the one on the diagonal and the one above. The third derivative is 1 minus these two;
// `left` is 0 only if it is 0. `number`: none of the three is NaN.
template <class T>
struct Weighted {
    T soft;
    T diag, up, left;
    bool number;
};

// Each type has a function of(to_diag, to_up, to_left): the least of three numbers minus each of
// them, so at most 0, and -1e30 or less for a predecessor that does not exist. `unit`: of costs
// divided by gamma in the kernels. `negative`: whether weights may be. `zeros`: whether weights of
// predecessors that exist are exactly 0, and the third one has to be 0 without a rounding error.
struct LogSumExp {
    static constexpr double unit = 1.4426950408889634;  // log2(e), for exponents of 2
    static constexpr bool negative = false, zeros = false;

    template <class T>
    static FASTSEQ_FN Weighted<T> of(T to_diag, T to_up, T to_left) {
        const T e_diag = power2(to_diag), e_up = power2(to_up), e_left = power2(to_left);
        const T s = e_diag + (e_up + e_left);
        const T r = reciprocal(s);
        return {-log2_of(s), e_diag * r, e_up * r, e_left, s == s};
    }
};

struct Prob {
    static constexpr double unit = 1.4426950408889634;
    static constexpr bool negative = true, zeros = false;

    template <class T>
    static FASTSEQ_FN Weighted<T> of(T to_diag, T to_up, T to_left) {
        const T e_diag = power2(to_diag), e_up = power2(to_up), e_left = power2(to_left);
        const T s = e_diag + (e_up + e_left);
        const T r = reciprocal(s);
        const T p_diag = e_diag * r, p_up = e_up * r, p_left = e_left * r;
        // Bounded, as 0 times an infinite distance is NaN; there p is 0 already.
        const T most = T(4096);
        const T far_diag = lowest(-to_diag, most), far_up = lowest(-to_up, most);
        const T far_left = lowest(-to_left, most);
        const T mean = fused(p_diag, far_diag, fused(p_up, far_up, p_left * far_left));
        const T ln2 = T(0.6931471805599453);
        const auto weight = [&](T p, T far) { return p * fused(ln2, mean - far, T(1)); };
        return {mean, weight(p_diag, far_diag), weight(p_up, far_up), weight(p_left, far_left),
                s == s};
    }
};

struct Sparse {
    static constexpr double unit = 1;
    static constexpr bool negative = false, zeros = true;

    // The point of the simplex nearest to the negated distances is max(bound - distance, 0). The
    // bound is the least of those that any subset would have, and distances of 1 or more have no
    // share.
    template <class T>
    static FASTSEQ_FN Weighted<T> of(T to_diag, T to_up, T to_left) {
        const auto near = [](T to) { return to < T(-2) ? T(2) : -to; };  // keeps NaN
        const T a = near(to_diag), b = near(to_up), c = near(to_left);
        const T second = highest(lowest(a, b), lowest(highest(a, b), c));
        const T sum = a + (b + c);
        const T of_two = lowest(T(1), fused(T(0.5), second, T(0.5)));
        const T of_three = fused(T(1.0 / 3), sum, T(1.0 / 3));
        const T bound = of_two < of_three ? of_two : of_three;  // keeps NaN
        const auto share = [&](T far) { return bound - far < T(0) ? T(0) : bound - far; };
        const T diag = share(a), up = share(b), left = share(c);
        const T squares = fused(diag, diag, fused(up, up, left * left));
        return {bound - fused(T(0.5), squares, T(0.5)), diag, up, left, sum == sum};
    }
};

}  // namespace soft_dtw
}  // namespace fastseq
