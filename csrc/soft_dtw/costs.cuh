// Costs of one block of 32 x 32 cells, computed by four warps.
#pragma once

#include "frames.cuh"

namespace fastseq {
namespace soft_dtw {

// Four warps: two sides of 16 columns times two halves of the channels.
constexpr int kCostThreads = 128;

// A warp's part of squared distances |x|^2 + |y|^2 - 2 x y: all rows and the 16 columns of a side,
// over half of the channels.
template <class W, class T>
struct Distances {
    typename W::template Reg<Sums<T>> products[2][2];
    typename W::template Reg<T> of_x[4], of_y[2];  // squared norms of rows g + 8 a, columns g + 8 b
};

// Channels come in groups of 16; each half has every other group.
template <class W, class T, bool quads>
FASTSEQ_FN void distances(const Frames<T, quads>& x, const Frames<T, quads>& y, int side, int half,
                          Distances<W, T>& out) {
    struct Loaded {
        Quad<T> x[4], y[2];  // channels from 4 q on
    };
    typename W::template Reg<Loaded> loaded;
    typename W::template Reg<Left<T>> left[2][2];    // [terms][rows]
    typename W::template Reg<Right<T>> right[2][2];  // [terms][columns]
    auto& of_x = out.of_x;
    auto& of_y = out.of_y;
    const auto load = [&](int group) {
        W::each([&](int lane) {
            const int d = 16 * group + 4 * (lane % 4);
            FASTSEQ_UNROLL(4)
            for (int a = 0; a < 4; ++a) loaded[lane].x[a] = x.raw(lane / 4 + 8 * a, d);
            FASTSEQ_UNROLL(2)
            for (int b = 0; b < 2; ++b) {
                loaded[lane].y[b] = y.raw(16 * side + lane / 4 + 8 * b, d);
            }
        });
    };
    W::each([&](int lane) {
        of_x[0][lane] = of_x[1][lane] = of_x[2][lane] = of_x[3][lane] = T(0);
        of_y[0][lane] = of_y[1][lane] = T(0);
        for (int k = 0; k < 4; ++k) out.products[k / 2][k % 2][lane] = {T(0), T(0), T(0), T(0)};
    });
    if (kReadsAhead<T, quads>) load(half);
    FASTSEQ_UNROLL(1)
    for (int group = half; 16 * group < x.channels; group += 2) {
        if (!kReadsAhead<T, quads>) load(group);
        W::each([&](int lane) {
            const Quad<T> mean = x.mean(16 * group + 4 * (lane % 4));
            FASTSEQ_UNROLL(4)
            for (int a = 0; a < 4; ++a) {
                const Quad<T> z = difference(loaded[lane].x[a], mean);
                FASTSEQ_UNROLL(4)
                for (int k = 0; k < 4; ++k) {
                    of_x[a][lane] = fused(z.at[k], z.at[k], of_x[a][lane]);
                    left[k / 2][a / 2][lane].at[a % 2 + 2 * (k % 2)] = factor(z.at[k]);
                }
            }
            FASTSEQ_UNROLL(2)
            for (int b = 0; b < 2; ++b) {
                const Quad<T> z = difference(loaded[lane].y[b], mean);
                FASTSEQ_UNROLL(4)
                for (int k = 0; k < 4; ++k) {
                    of_y[b][lane] = fused(z.at[k], z.at[k], of_y[b][lane]);
                    right[k / 2][b][lane].at[k % 2] = factor(z.at[k]);
                }
            }
        });
        if (kReadsAhead<T, quads>) load(group + 2);  // loading while the products are computed
        FASTSEQ_UNROLL(2)
        for (int a = 0; a < 2; ++a) {
            // One sum per group, as tensor cores truncate numbers added to a float sum.
            Tiles<W, T, 1, 2> sums;
            sums.clear();
            sums.add(left[0] + a, right[0]);
            sums.add(left[1] + a, right[1]);
            W::each([&](int lane) {
                FASTSEQ_UNROLL(8)
                for (int k = 0; k < 8; ++k) {
                    out.products[a][k / 4][lane].at[k % 4] += sums.sum(0, k / 4, lane, k % 4);
                }
            });
        }
    }
    FASTSEQ_UNROLL(4)
    for (int a = 0; a < 4; ++a) of_x[a] = W::template sum<1, 4>(of_x[a]);
    FASTSEQ_UNROLL(2)
    for (int b = 0; b < 2; ++b) of_y[b] = W::template sum<1, 4>(of_y[b]);
}

// The warps of the second half store their sums in `parts`; those of the first add these to theirs
// and write the block.
template <class T>
struct CostParts {
    static constexpr int kNumbers = 22;  // 16 products and 6 norms of a lane
    T at[2 * kNumbers * kLanes];
    int close;  // whether some cell needs its difference

    FASTSEQ_FN T& number(int side, int k, int lane) {
        return at[(side * kNumbers + k) * kLanes + lane];
    }
};

template <class W, class T>
FASTSEQ_FN void leave_part(const Distances<W, T>& d, int side, CostParts<T>& parts) {
    W::each([&](int lane) {
        FASTSEQ_UNROLL(16)
        for (int k = 0; k < 16; ++k) {
            parts.number(side, k, lane) = d.products[k / 8][k / 4 % 2][lane].at[k % 4];
        }
        FASTSEQ_UNROLL(4)
        for (int a = 0; a < 4; ++a) parts.number(side, 16 + a, lane) = d.of_x[a][lane];
        FASTSEQ_UNROLL(2)
        for (int b = 0; b < 2; ++b) parts.number(side, 20 + b, lane) = d.of_y[b][lane];
    });
}

// Whether the norms have cancelled in a cell: a distance this far below them has lost digits that
// float cannot spare.
template <class T>
FASTSEQ_FN bool cancelled(T distance, T norms) {
    return sizeof(T) == 4 && distance < T(0.125) * norms;
}

// Returns whether that is so in any cell. bias(column) is added to the distances of a column.
template <class W, class T, class Bias>
FASTSEQ_FN bool write_distances(Distances<W, T>& d, int side, CostParts<T>& parts, T scale,
                                const Bias& bias, T* block) {
    typename W::template Reg<bool> close;
    W::each([&](int lane) {
        close[lane] = false;
        FASTSEQ_UNROLL(4)
        for (int a = 0; a < 4; ++a) d.of_x[a][lane] += parts.number(side, 16 + a, lane);
        FASTSEQ_UNROLL(2)
        for (int b = 0; b < 2; ++b) d.of_y[b][lane] += parts.number(side, 20 + b, lane);
    });
    FASTSEQ_UNROLL(2)
    for (int b = 0; b < 2; ++b) {
        const auto column_of = [&](int lane, int e) {
            return 16 * side + 8 * b + 2 * (lane % 4) + e;
        };
        typename W::template Reg<Pair<T>> added;
        W::each([&](int lane) {
            bias.read(added[lane].at, [&](int e) { return column_of(lane, e); });
        });
        FASTSEQ_UNROLL(2)
        for (int e = 0; e < 2; ++e) {  // the lanes that hold frame 2 q + e
            const auto of_column =
                W::pick(d.of_y[b], [&](int lane) { return 8 * (lane % 4) + 4 * e; });
            W::each([&](int lane) {
                FASTSEQ_UNROLL(4)
                for (int a = 0; a < 4; ++a) {
                    const int k = 8 * (a / 2) + 4 * b + 2 * (a % 2) + e;
                    const T product = d.products[a / 2][b][lane].at[2 * (a % 2) + e] +
                                      parts.number(side, k, lane);
                    const T norms = d.of_x[a][lane] + of_column[lane];
                    const T distance = fused(T(-2), product, norms);
                    close[lane] = close[lane] || cancelled(distance, norms);
                    const int row = lane / 4 + 8 * a;
                    block[row * kLanes + column_of(lane, e)] =
                        fused(distance, scale, added[lane].at[e]);
                }
            });
        }
    }
    return W::any(close);
}

// Distances as sums of squared differences, which lose nothing, at four times the price: 128
// threads, each with rows r, r + 16 and columns c, c + 8, c + 16, c + 24.
template <class T, bool quads, class Bias>
FASTSEQ_FN void write_differences(const Frames<T, quads>& x, const Frames<T, quads>& y, int thread,
                                  T scale, const Bias& bias, T* block) {
    const int row = thread / 8, column = thread % 8;
    T sums[2][4] = {};
    Quad<T> added;
    bias.read(added.at, [&](int k) { return column + 8 * k; });
    FASTSEQ_UNROLL(1)
    for (int group = 0; group < x.channels; group += 32) {
        T part[2][4] = {};  // rounding then grows with the group and the number of groups
        FASTSEQ_UNROLL(1)
        for (int d = group; d < lesser(group + 32, x.channels); d += 4) {
            Quad<T> xs[2], ys[4];
            FASTSEQ_UNROLL(2)
            for (int a = 0; a < 2; ++a) xs[a] = x.raw(row + 16 * a, d);
            FASTSEQ_UNROLL(4)
            for (int c = 0; c < 4; ++c) ys[c] = y.raw(column + 8 * c, d);
            FASTSEQ_UNROLL(8)
            for (int cell = 0; cell < 8; ++cell) {
                const Quad<T> gap = difference(xs[cell / 4], ys[cell % 4]);
                FASTSEQ_UNROLL(4)
                for (int k = 0; k < 4; ++k) {
                    T& sum = part[cell / 4][cell % 4];
                    sum = fused(gap.at[k], gap.at[k], sum);
                }
            }
        }
        FASTSEQ_UNROLL(8)
        for (int cell = 0; cell < 8; ++cell) sums[cell / 4][cell % 4] += part[cell / 4][cell % 4];
    }
    FASTSEQ_UNROLL(8)
    for (int cell = 0; cell < 8; ++cell) {
        block[(row + 16 * (cell / 4)) * kLanes + column + 8 * (cell % 4)] =
            fused(sums[cell / 4][cell % 4], scale, added.at[cell % 4]);
    }
}

// Given costs instead: [row][pitch] from `costs` on; `rows` x `columns` of them are real.
template <class T>
FASTSEQ_FN void copy_costs(const T* costs, long long pitch, int rows, int columns, int thread,
                           T scale, double* block) {
    for (int cell = thread; cell < kBlock; cell += kCostThreads) {
        const int row = cell / kLanes, column = cell % kLanes;
        const double u = row < rows && column < columns
                             ? static_cast<double>(costs[row * pitch + column]) * scale
                             : 0.0;
        block[cell] = u < 0 ? u + (u - u) : u;  // -inf becomes NaN: a path through it has no weight
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
