// The arithmetic of Soft-DTW on one tile, for a warp of the device or of the host (warp.cuh).
//
// A strip is 32 rows of the cost matrix, one per lane. The wave is skewed: at step k of phase t
// lane l is at column 32 t + k - l, so that a phase is 32 steps without filling or draining and
// what passes from phase to phase is one h and one v per lane. A block is 32 rows x 32 columns,
// [row][column]; phase t meets the blocks t and t - 1. Blocks lie in rings of three.
#pragma once

#include "cells.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kBlock = kLanes * kLanes;  // cells
constexpr int kRing = 3;                 // blocks

template <class T>
FASTSEQ_FN T* ring_block(T* ring, int block) {
    return ring + (block + kRing) % kRing * kBlock;  // block may be -1
}

// 32 rows of one sequence pair of real lengths n and m, with cells where low <= j - i <= high.
struct Strip {
    int index, first_row, n, m, low, high;

    FASTSEQ_FN bool empty() const { return first_row >= n || m == 0; }
    FASTSEQ_FN bool is_last() const { return first_row + kLanes >= n; }
    FASTSEQ_FN int first_block() const { return larger(0, first_row + low) / kLanes; }
    FASTSEQ_FN int last_block() const {
        return lesser(m - 1, lesser(first_row + kLanes, n) - 1 + high) / kLanes;
    }
    // One column earlier than the first cell: the strip above gets diagonal flux there.
    FASTSEQ_FN int first_phase() const { return larger(0, first_row + low - 1) / kLanes; }
    FASTSEQ_FN int last_phase() const { return last_block() + 1; }
    FASTSEQ_FN Strip neighbour(int step) const {
        return {index + step, first_row + step * kLanes, n, m, low, high};
    }
    FASTSEQ_FN Row row(int lane) const {
        const int i = first_row + lane;
        return {i, larger(0, i + low), i < n ? lesser(m - 1, i + high) : -1, i > 0 ? i + high : 0};
    }
};

// Lengths are clamped here: those on a GPU have been seen by nobody. band < 0: none.
FASTSEQ_FN Strip make_strip(int index, int b, int rows, int columns, const long long* lengths_x,
                            const long long* lengths_y, int band) {
    const long long given_n = lengths_x ? lengths_x[b] : rows;
    const long long given_m = lengths_y ? lengths_y[b] : columns;
    const int n = given_n < 0 ? 0 : given_n > rows ? rows : static_cast<int>(given_n);
    const int m = given_m < 0 ? 0 : given_m > columns ? columns : static_cast<int>(given_m);
    const int reach = band < 0 ? rows + columns : lesser(band, rows + columns);
    return {index, index * kLanes, n, m, lesser(0, m - n) - reach, larger(0, m - n) + reach};
}

// What passes from cell to cell, one per lane.
template <class W, class Kind>
using States = typename W::template Reg<typename Kind::State>;

// One phase of the recursion. `costs` is a ring of blocks in units u; top[k] is h above lane 0 at
// column 32 t + k; h and v pass from phase to phase; sink(lane, k, row, j, exists, cell) takes
// the cells.
template <class W, class Kind, class Sink>
FASTSEQ_FN void wave_phase(const Strip& strip, int t, const typename Kind::State* costs,
                           const typename Kind::State* top, States<W, Kind>& h,
                           States<W, Kind>& v, const Sink& sink) {
    const auto* here = ring_block(costs, t);
    const auto* before = ring_block(costs, t - 1);
    FASTSEQ_UNROLL(4)
    for (int k = 0; k < kLanes; ++k) {
        const auto above = W::from_above(h, top[k]);
        W::each([&](int lane) {
            const Row row = strip.row(lane);
            const int j = kLanes * t + k - lane;
            const auto u = (k >= lane ? here : before)[lane * kLanes + (k - lane + kLanes) % kLanes];
            const auto cell = Kind::cell(row, j, u, above[lane], h[lane], v[lane]);
            h[lane] = cell.h;
            v[lane] = cell.v;
            sink(lane, k, row, j, j >= row.first && j <= row.last, cell);
        });
    }
}

// Forward: `sum` gathers the value; the last lane's h goes to bottom[j], 0 <= j < width.
template <class W, class Kind>
FASTSEQ_FN void forward_phase(const Strip& strip, int t, const typename Kind::State* costs,
                              const typename Kind::State* top, States<W, Kind>& h,
                              States<W, Kind>& v, typename W::template Reg<double>& sum,
                              typename Kind::State* bottom, int width) {
    using Cell = typename Kind::Cell;
    wave_phase<W, Kind>(
        strip, t, costs, top, h, v,
        [&](int lane, int, const Row& row, int j, bool exists, const Cell& cell) {
            if (exists) {
                const auto term = Kind::value_term(strip.n, strip.m, row, j, cell);
                sum[lane] += static_cast<double>(term);
            }
            if (lane == kLanes - 1 && j >= 0 && j < width) bottom[j] = cell.h;
        });
}

// Backward, first half: the weights of the predecessors, p_diag then p_up, [step][lane] each.
template <class W, class Kind>
FASTSEQ_FN void recompute_phase(const Strip& strip, int t, const typename Kind::State* costs,
                                const typename Kind::State* top, States<W, Kind>& h,
                                States<W, Kind>& v, typename Kind::Number* weights) {
    using T = typename Kind::Number;
    using Cell = typename Kind::Cell;
    wave_phase<W, Kind>(strip, t, costs, top, h, v,
                        [&](int lane, int k, const Row&, int, bool exists, const Cell& cell) {
                            T* p_weight = weights + k * kLanes + lane;
                            p_weight[0] = exists ? cell.p_diag : T(0);
                            p_weight[kBlock] = exists ? cell.p_up : T(0);
                        });
}

// What passes from a phase of the backward wave to the one on its left.
template <class W, class T>
struct Flux {
    typename W::template Reg<T> left, up, diag;

    FASTSEQ_FN void clear() {
        W::each([&](int lane) { left[lane] = up[lane] = diag[lane] = T(0); });
    }
};

// Backward, second half, right to left: E_ij gathers what its successors hand back. A row hands up
// to column j its E_ij p_up and, with it, E_i,j+1 p_diag. bottom[k]: the same from the strip below
// at column 32 t + k - 31. E goes to the ring `es`; lane 0 hands up to top[j], 0 <= j < width.
template <class W, class Kind, class T>
FASTSEQ_FN void flux_phase(const Strip& strip, int t, const T* weights, const T* bottom, T grad,
                           Flux<W, T>& flux, T* es, T* top, int width) {
    T* here = ring_block(es, t);
    T* before = ring_block(es, t - 1);
    FASTSEQ_UNROLL(4)
    for (int k = kLanes - 1; k >= 0; --k) {
        const auto below = W::from_below(flux.up, bottom[k]);
        W::each([&](int lane) {
            const Row row = strip.row(lane);
            const int j = kLanes * t + k - lane;
            const T p_diag = weights[k * kLanes + lane];
            const T p_up = weights[kBlock + k * kLanes + lane];
            const T rest = T(1) - (p_diag + p_up);
            const T p_left = rest < T(0) ? T(0) : rest;  // keeps NaN
            T e = j >= row.first && j <= row.last ? below[lane] + flux.left[lane] : T(0);
            if (row.i == strip.n - 1 && j == strip.m - 1) e = grad;
            if constexpr (Kind::given) {
                if (p_diag < T(0)) e = T(0);  // no path leads here, whatever comes back, NaN too
            }
            flux.left[lane] = e * p_left;
            flux.up[lane] = fused(e, p_up, flux.diag[lane]);
            flux.diag[lane] = e * p_diag;
            (k >= lane ? here : before)[lane * kLanes + (k - lane + kLanes) % kLanes] = e;
            if (lane == 0 && j < width) top[j] = flux.up[lane];
        });
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
