// Products of small matrices by tensor cores, 16 x 8 sums over 8 terms at a time: for float by
// three products of TF32 numbers (an error of 2^-20 of a term), for double by products of doubles.
#pragma once

#include "warp.cuh"

#ifndef __CUDACC__
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

namespace fastseq {
namespace soft_dtw {

// A number as operand of tensor cores.
template <class T>
struct Factor;
template <>
struct Factor<float> {
    float high, low;
};
template <>
struct Factor<double> {
    double all;
};

// A lane's part of the three matrices; g = lane / 4 and q = lane % 4.
template <class T>
struct Left {
    Factor<T> at[4];  // rows g, g + 8, g, g + 8; the sum's terms q, q, q + 4, q + 4
};
template <class T>
struct Right {
    Factor<T> at[2];  // column g; the terms q, q + 4
};
template <class T>
struct Sums {
    T at[4];  // rows g, g, g + 8, g + 8; columns 2 q, 2 q + 1, 2 q, 2 q + 1
};

#ifdef __CUDACC__
FASTSEQ_FN unsigned bits_of(float x) { return __float_as_uint(x); }
FASTSEQ_FN float with_bits(unsigned x) { return __uint_as_float(x); }
#else
inline unsigned bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float with_bits(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
#endif

// x = high + low + an error of 2^-21 x: 11 bits each, the first rounded, the second truncated. NaN
// may become a number here: sums that must keep NaN add it in another way.
FASTSEQ_FN Factor<float> factor(float x) {
    constexpr unsigned kept = 0xffffe000u, half = 0x1000u;
    const float high = with_bits((bits_of(x) + half) & kept);
    return {high, with_bits(bits_of(x - high) & kept)};
}
FASTSEQ_FN Factor<double> factor(double x) { return {x}; }

#ifdef __CUDACC__

FASTSEQ_FN void multiply(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(bits_of(a0)), "r"(bits_of(a1)), "r"(bits_of(a2)), "r"(bits_of(a3)),
          "r"(bits_of(b0)), "r"(bits_of(b1)));
}
FASTSEQ_FN void multiply(double& c0, double& c1, double a, double b) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(c0), "+d"(c1)
        : "d"(a), "d"(b));
}

// sums + rest += left right, in three passes, so that the passes of one product need not wait for
// each other. The rest sums the small terms, in the first two; double needs only the last pass.
template <int pass>
FASTSEQ_FN void add_product(Sums<float>& sums, Sums<float>& rest, const Left<float>& left,
                            const Right<float>& right) {
    const auto& a = left.at;
    const auto& b = right.at;
    if (pass == 0) {
        multiply(rest.at, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
    } else if (pass == 1) {
        multiply(rest.at, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
    } else {
        multiply(sums.at, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
    }
}
template <int pass>
FASTSEQ_FN void add_product(Sums<double>& sums, Sums<double>&, const Left<double>& left,
                            const Right<double>& right) {
    for (int row = 0; pass == 2 && row < 2; ++row) {
        for (int term = 0; term < 2; ++term) {
            multiply(sums.at[2 * row], sums.at[2 * row + 1], left.at[row + 2 * term].all,
                     right.at[term].all);
        }
    }
}

#else

// The same for one lane of 32 when all matrices are available. Tensor cores truncate numbers added
// to a float sum instead of rounding them: that is the worst known behaviour.
inline float cut_sum(float sum, double terms) {
    const double exact = sum + terms;
    float out = static_cast<float>(exact);
    if (std::fabs(out) > std::fabs(exact)) out = std::nextafterf(out, 0.0f);
    return out;
}

template <class T>
struct CellTerms {
    const Factor<T>*a[8], *b[8];
};

template <class T, class Lefts, class Rights>
inline CellTerms<T> factors_of_cell(const Lefts& left, const Rights& right, int row, int column) {
    CellTerms<T> cell;
    for (int term = 0; term < 8; ++term) {
        const int q = term % 4, second = term / 4;
        cell.a[term] = &left(row % 8 * 4 + q).at[row / 8 + 2 * second];
        cell.b[term] = &right(column * 4 + q).at[second];
    }
    return cell;
}

template <int pass>
inline void add_cell(float& sum, float& rest, const CellTerms<float>& cell) {
    double terms = 0;
    for (int term = 0; term < 8; ++term) {
        const auto &a = *cell.a[term], &b = *cell.b[term];
        terms += static_cast<double>(pass == 0 ? a.low : a.high) * (pass == 1 ? b.low : b.high);
    }
    float& out = pass < 2 ? rest : sum;
    out = cut_sum(out, terms);
}
template <int pass>
inline void add_cell(double& sum, double&, const CellTerms<double>& cell) {
    for (int term = 0; pass == 2 && term < 8; ++term) {
        sum += cell.a[term]->all * cell.b[term]->all;
    }
}

// left(lane) and right(lane): that lane's parts.
template <int pass, class T, class Lefts, class Rights>
inline void add_product_of_lane(Sums<T>& sums, Sums<T>& rest, const Lefts& left,
                                const Rights& right, int lane) {
    for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + 8 * (e / 2), column = 2 * (lane % 4) + e % 2;
        add_cell<pass>(sums.at[e], rest.at[e], factors_of_cell<T>(left, right, row, column));
    }
}

template <int pass, class T>
inline void add_product(HostWarp::Reg<Sums<T>>& sums, HostWarp::Reg<Sums<T>>& rest,
                        const HostWarp::Reg<Left<T>>& left,
                        const HostWarp::Reg<Right<T>>& right) {
    const auto lefts = [&](int lane) -> const Left<T>& { return left[lane]; };
    const auto rights = [&](int lane) -> const Right<T>& { return right[lane]; };
    HostWarp::each(
        [&](int lane) { add_product_of_lane<pass>(sums[lane], rest[lane], lefts, rights, lane); });
}

#endif

#ifdef __CUDACC__
template <int pass, class T>
FASTSEQ_FN void add_product(DeviceWarp::Reg<Sums<T>>& sums, DeviceWarp::Reg<Sums<T>>& rest,
                            const DeviceWarp::Reg<Left<T>>& left,
                            const DeviceWarp::Reg<Right<T>>& right) {
    add_product<pass>(sums.value, rest.value, left.value, right.value);
}
#endif

}  // namespace soft_dtw
}  // namespace fastseq
