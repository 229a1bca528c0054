// The arithmetic of Soft-DTW on one tile, for a warp of the device or of the host (warp.cuh).
//
// A strip is 32 rows of the cost matrix, one per lane. The wave is skewed: at step k of phase t
// lane l is at column 32 t + k - l, so that a phase is 32 steps without filling or draining, and
// only one h and one v per lane pass from phase to phase. A block is 32 rows x 32 columns,
// [row][column]; phase t meets the blocks t and t - 1. Blocks are stored in rings.
#pragma once

#include "cells.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kBlock = kLanes * kLanes;  // cells
// E has a pitch without bank conflicts both for the wave, which writes along diagonals, and for the
// tensor cores, which read rows in fours.
constexpr int kEPitch = kLanes + 4;
constexpr int kEBlock = kLanes * kEPitch;

template <int ring, int size = kBlock, class T>
FASTSEQ_FN T* ring_block(T* blocks, int block) {
    return blocks + (block + ring) % ring * size;  // block may be -1
}

// 32 rows of one sequence pair with real lengths `real` and m; cells where low <= j - i <= high.
// n rows are walked: one more than the real ones if the end is free.
struct Strip {
    int index, first_row, n, m, low, high, real;
    bool opens;

    FASTSEQ_FN bool empty() const { return first_row >= n || m == 0; }
    FASTSEQ_FN bool is_last() const { return first_row + kLanes >= n; }
    FASTSEQ_FN int first_block() const { return first_column(first_row) / kLanes; }
    FASTSEQ_FN int last_block() const {
        return last_column(lesser(first_row + kLanes, n) - 1) / kLanes;
    }
    // One column before the first cell: the strip above receives diagonal flux there.
    FASTSEQ_FN int first_phase() const { return larger(0, first_column(first_row) - 1) / kLanes; }
    FASTSEQ_FN int last_phase() const { return last_block() + 1; }
    FASTSEQ_FN bool has_phase(int t) const { return t >= first_phase() && t <= last_phase(); }
    FASTSEQ_FN bool has_block(int t) const { return t >= first_block() && t <= last_block(); }
    FASTSEQ_FN Strip neighbour(int step) const {
        return {index + step, first_row + step * kLanes, n, m, low, high, real, opens};
    }
    // The row below the last real one begins where the last one does.
    FASTSEQ_FN int first_column(int i) const { return larger(0, lesser(i, real - 1) + low); }
    FASTSEQ_FN int last_column(int i) const { return i >= real ? m - 1 : lesser(m - 1, i + high); }
    FASTSEQ_FN Row row(int lane) const {
        const int i = first_row + lane;
        return {i, first_column(i), i < n ? last_column(i) : -1, i > 0 ? i + high : 0,
                i == 0 && opens, i == real};
    }
    // Whether all cells of phase t exist, with all three neighbours, and none lies in the last row
    // right of the diagonal or in the last column, where the value is summed.
    FASTSEQ_FN bool inner(int t) const {
        const int least = kLanes * t - (kLanes - 1), most = kLanes * t + kLanes - 1;
        return first_row > 0 && first_row + kLanes <= real && most < m - 1 && most < n &&
               least > first_column(first_row + kLanes - 1) && most < first_row + high;
    }
};

// Lengths are clamped here: the host has not checked those on a GPU. band < 0: no band.
FASTSEQ_FN Strip make_strip(int index, int rows, int columns, long long given_n, long long given_m,
                            long long band, bool opens, bool closes) {
    const int n = given_n < 0 ? 0 : given_n > rows ? rows : static_cast<int>(given_n);
    const int m = given_m < 0 ? 0 : given_m > columns ? columns : static_cast<int>(given_m);
    const int far = rows + columns, reach = band < 0 || band > far ? far : static_cast<int>(band);
    return {index, index * kLanes, n + (closes && n > 0), m, lesser(0, m - n) - reach,
            larger(0, m - n) + reach, n, opens};
}

// A compile-time constant of a template, as an argument.
template <bool known>
struct Known {
    static constexpr bool value = known;
};

// Number of unrolled steps.
constexpr int kSteps = 8;

// A border of 32 columns that is completely available, for a wave: column k, after open(k) for the
// first of eight.
template <class W, class T>
struct Held {
    typename W::template Reg<T> now;
    FASTSEQ_FN void open(int) {}
    FASTSEQ_FN T at(int k) const { return W::broadcast(now, k); }
};

// The numbers that pass from cell to cell, one per lane.
template <class W, class Kind>
using States = typename W::template Reg<typename Kind::State>;

// Steps begin <= k < end of one phase of the recursion. `costs` is a ring of blocks in units u;
// top.at(k) is h above lane 0 at column 32 t + k; h and v pass from phase to phase;
// sink(lane, k, row, j, cell) receives the cells.
template <class W, class Kind, int ring, bool inner, class Top, class Sink>
FASTSEQ_FN void wave(const Strip& strip, int t, int begin, int end,
                     const typename Kind::State* costs, typename Kind::State penalty,
                     Top& top, States<W, Kind>& h, States<W, Kind>& v, const Sink& sink) {
    const auto* here = ring_block<ring>(costs, t);
    const auto* before = ring_block<ring>(costs, t - 1);
    FASTSEQ_UNROLL(1)
    for (int first = begin; first < end; first += kSteps) {
        top.open(first);
        FASTSEQ_UNROLL(8)
        for (int step = 0; step < kSteps; ++step) {
            const int k = first + step;
            const auto above = W::from_above(h, top.at(k));
            W::each([&](int lane) {
                const Row row = strip.row(lane);
                const int j = kLanes * t + k - lane;
                const auto* block = k >= lane ? here : before + kLanes;
                const auto u = block[lane * (kLanes - 1) + k];
                const auto cell =
                    Kind::template cell<inner>(row, j, u, above[lane], h[lane], v[lane], penalty);
                h[lane] = cell.h;
                v[lane] = cell.v;
                sink(lane, k, row, j, cell);
            });
        }
    }
}

// Forward: `sum` accumulates the value; put(j, h, inner) receives the last lane's h.
template <class W, class Kind, int ring, class Top, class Put>
FASTSEQ_FN void forward_phase(const Strip& strip, int t, const typename Kind::State* costs,
                              typename Kind::State penalty, Top& top, States<W, Kind>& h,
                              States<W, Kind>& v, typename W::template Reg<double>& sum,
                              const Put& put) {
    using Cell = typename Kind::Cell;
    if (strip.inner(t)) {
        States<W, Kind> term;
        W::each([&](int lane) { term[lane] = 0; });
        wave<W, Kind, ring, true>(strip, t, 0, kLanes, costs, penalty, top, h, v,
                                  [&](int lane, int, const Row& row, int j, const Cell& cell) {
                                      Kind::inner_term(row, j, cell, term[lane]);
                                      if (lane == kLanes - 1) put(j, cell.h, Known<true>());
                                  });
        W::each([&](int lane) { sum[lane] += static_cast<double>(term[lane]); });
        return;
    }
    wave<W, Kind, ring, false>(
        strip, t, 0, kLanes, costs, penalty, top, h, v,
        [&](int lane, int, const Row& row, int j, const Cell& cell) {
            if (j >= row.first && j <= row.last) {
                sum[lane] += static_cast<double>(Kind::value_term(strip.n, strip.m, row, j, cell));
            }
            if (lane == kLanes - 1) put(j, cell.h, Known<false>());
        });
}

// Backward, first half: the weights of the predecessors, p_diag then p_up, [step][lane] each, for
// the steps begin <= k < end.
template <class W, class Kind, int ring, class Top>
FASTSEQ_FN void weigh_steps(const Strip& strip, int t, int begin, int end,
                            const typename Kind::State* costs, typename Kind::State penalty,
                            Top& top, States<W, Kind>& h, States<W, Kind>& v,
                            typename Kind::Number* weights) {
    using T = typename Kind::Number;
    using Cell = typename Kind::Cell;
    const auto keep = [&](int lane, int k, T p_diag, T p_up) {
        weights[k * kLanes + lane] = p_diag;
        weights[kBlock + k * kLanes + lane] = p_up;
    };
    if (strip.inner(t)) {
        wave<W, Kind, ring, true>(strip, t, begin, end, costs, penalty, top, h, v,
                                  [&](int lane, int k, const Row&, int, const Cell& cell) {
                                      keep(lane, k, cell.p_diag, cell.p_up);
                                  });
        return;
    }
    wave<W, Kind, ring, false>(strip, t, begin, end, costs, penalty, top, h, v,
                               [&](int lane, int k, const Row& row, int j, const Cell& cell) {
                                   const bool exists = j >= row.first && j <= row.last;
                                   keep(lane, k, exists ? cell.p_diag : T(0),
                                        exists ? cell.p_up : T(0));
                               });
}

// The numbers that pass from a phase of the backward wave to the one on its left.
template <class W, class T>
struct Flux {
    typename W::template Reg<T> left, up, diag;

    FASTSEQ_FN void clear() {
        W::each([&](int lane) { left[lane] = up[lane] = diag[lane] = T(0); });
    }
};

// Backward, second half, right to left: E_ij sums the flux from its successors. A row passes up to
// column j its E_ij p_up and, with it, E_i,j+1 p_diag. bottom.at(k): the same from the strip below
// at column 32 t + k - 31. E goes to the ring `es` of three; put(j, flux, inner) receives the flux
// that lane 0 passes up.
template <class W, class Kind, bool inner, class T, class Bottom, class Put>
FASTSEQ_FN void flux_steps(const Strip& strip, int t, const T* weights, Bottom& bottom, T grad,
                           Flux<W, T>& flux, T* es, const Put& put) {
    T* here = ring_block<3, kEBlock>(es, t);
    T* before = ring_block<3, kEBlock>(es, t - 1);
    FASTSEQ_UNROLL(1)
    for (int last = kLanes - 1; last >= 0; last -= kSteps) {
        bottom.open(last);
        FASTSEQ_UNROLL(8)
        for (int step = 0; step < kSteps; ++step) {
            const int k = last - step;
            const auto below = W::from_below(flux.up, bottom.at(k));
            W::each([&](int lane) {
                const Row row = strip.row(lane);
                const int j = kLanes * t + k - lane;
                const T p_diag = weights[k * kLanes + lane];
                const T p_up = weights[kBlock + k * kLanes + lane];
                const T rest = T(1) - (p_diag + p_up);
                const T p_left = !Kind::Min::negative && rest < T(0) ? T(0) : rest;  // keeps NaN
                T e = below[lane] + flux.left[lane];
                if (!inner && !(j >= row.first && j <= row.last)) e = T(0);
                if (!inner && row.i == strip.n - 1 && j == strip.m - 1) e = grad;
                if constexpr (Kind::given) {
                    // No path reaches this cell, whatever returns.
                    if (p_diag >= Kind::gone) e = T(0);
                }
                flux.left[lane] = e * p_left;
                flux.up[lane] = fused(e, p_up, flux.diag[lane]);
                flux.diag[lane] = e * p_diag;
                T* block = k >= lane ? here : before + kLanes;
                block[lane * (kEPitch - 1) + k] = !inner && row.closes ? T(0) : e;
                if (lane == 0) put(j, flux.up[lane], Known<inner>());
            });
        }
    }
}

template <class W, class Kind, class T, class Bottom, class Put>
FASTSEQ_FN void flux_phase(const Strip& strip, int t, const T* weights, Bottom& bottom, T grad,
                           Flux<W, T>& flux, T* es, const Put& put) {
    if (strip.inner(t)) {
        flux_steps<W, Kind, true>(strip, t, weights, bottom, grad, flux, es, put);
    } else {
        flux_steps<W, Kind, false>(strip, t, weights, bottom, grad, flux, es, put);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
