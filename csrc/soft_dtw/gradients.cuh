// Gradients of one block of 32 x 32 cells, computed by four warps.
#pragma once

#include "frames.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kGradientThreads = 128;
constexpr int kGradientWarps = kGradientThreads / kLanes;

// Four numbers of a gradient; `count` of them exist. `handed`: another thread block wrote them or
// will read them.
template <bool handed, bool quads, class T>
FASTSEQ_FN Quad<T> held_numbers(const T* at, int count) {
    Quad<T> out{T(0), T(0), T(0), T(0)};
    if constexpr (quads) {
        const auto* quad = reinterpret_cast<const Quad<T>*>(at);
        if (count > 0) out = handed ? load_handed(quad) : *quad;
    } else {
        FASTSEQ_UNROLL(4)
        for (int k = 0; k < 4; ++k) {
            if (k < count) out.at[k] = handed ? load_handed(at + k) : at[k];
        }
    }
    return out;
}
template <bool handed, bool quads, class T>
FASTSEQ_FN void hold_numbers(T* at, const Quad<T>& value, int count) {
    if constexpr (quads) {
        if (count <= 0) return;
        auto* quad = reinterpret_cast<Quad<T>*>(at);
        if constexpr (handed) {
            store_handed(quad, value);
        } else {
            *quad = value;
        }
    } else {
        FASTSEQ_UNROLL(4)
        for (int k = 0; k < 4; ++k) {
            if (k >= count) continue;
            if constexpr (handed) {
                store_handed(at + k, value.at[k]);
            } else {
                at[k] = value.at[k];
            }
        }
    }
}

// Whether E is nonzero anywhere in a block: far from the path it is exactly 0.
template <class W, class T>
FASTSEQ_FN bool any_flux(const T* es) {
    typename W::template Reg<bool> found;
    W::each([&](int lane) {
        found[lane] = false;
        FASTSEQ_UNROLL(8)
        for (int column = 0; column < kLanes; column += 4) {
            const auto quad = *reinterpret_cast<const Quad<T>*>(es + lane * kEPitch + column);
            found[lane] = found[lane] || quad.at[0] != T(0) || quad.at[1] != T(0) ||
                          quad.at[2] != T(0) || quad.at[3] != T(0);
        }
    });
    return W::any(found);
}

// Sums of E over the rows of a block; lane k gets that of column k.
template <class W, class T>
FASTSEQ_FN typename W::template Reg<T> column_sums(const T* es) {
    typename W::template Reg<T> sums;
    W::each([&](int lane) {
        sums[lane] = T(0);
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kLanes; ++r) sums[lane] += es[r * kEPitch + lane];
    });
    return sums;
}

// Gradients of one block for 32 channels from 32 * chunk on: dx_i = sum_j E_ij (x_i - y_j) of the
// rows, or with of_y: dy_j = sum_i E_ij (y_j - x_i) of the columns, as (sum of E) own - E other. E
// includes the factor 2 of the derivative. They are added to `out`, [frame][channel], which has
// `rows` rows; `first`: it is still empty. ready() returns when strips before this one have added.
template <class W, bool of_y, class T, bool quads, class Ready>
FASTSEQ_FN void gradients(const T* es, const Frames<T, quads>& own, const Frames<T, quads>& other,
                          int chunk, T* out, int rows, bool first, const Ready& ready) {
    Tiles<W, T, 2, 4> sums;
    typename W::template Reg<T> totals[4];  // sums of E, for frames g + 8 a
    struct Loaded {
        Quad<T> at[2];
    };
    typename W::template Reg<Loaded> loaded;
    // Frame k of the two of `other` that a lane reads in each of four steps. Any order works that
    // is the same for E and for the frames; this one has no bank conflicts.
    const auto frame = [&](int q, int step, int k) {
        return of_y ? 8 * step + 2 * q + k : 4 * step + 16 * (q % 2) + 2 * (q / 2) + k;
    };
    const auto load = [&](int step) {
        W::each([&](int lane) {
            FASTSEQ_UNROLL(2)
            for (int k = 0; k < 2; ++k) {
                loaded[lane].at[k] =
                    other.raw(frame(lane % 4, step, k), 32 * chunk + 4 * (lane / 4));
            }
        });
    };
    W::each([&](int lane) {
        totals[0][lane] = totals[1][lane] = totals[2][lane] = totals[3][lane] = T(0);
    });
    sums.clear();
    if (kReadsAhead<T, quads>) load(0);
    ready();
    FASTSEQ_UNROLL(1)
    for (int step = 0; step < 4; ++step) {
        if (!kReadsAhead<T, quads>) load(step);
        typename W::template Reg<Left<T>> left[2];
        typename W::template Reg<Right<T>> right[4];
        W::each([&](int lane) {
            const int g = lane / 4, q = lane % 4;
            const Quad<T> mean = other.mean(32 * chunk + 4 * g);
            FASTSEQ_UNROLL(2)
            for (int k = 0; k < 2; ++k) {
                const Quad<T> z = difference(loaded[lane].at[k], mean);
                FASTSEQ_UNROLL(4)
                for (int b = 0; b < 4; ++b) right[b][lane].at[k] = factor(z.at[b]);
            }
            FASTSEQ_UNROLL(4)
            for (int a = 0; a < 4; ++a) {
                const int row = g + 8 * a, column = frame(q, step, 0);
                Pair<T> e;
                if constexpr (of_y) {
                    e = {es[column * kEPitch + row], es[(column + 1) * kEPitch + row]};
                } else {
                    e = *reinterpret_cast<const Pair<T>*>(es + row * kEPitch + column);
                }
                totals[a][lane] += e.at[0] + e.at[1];
                left[a / 2][lane].at[a % 2] = factor(e.at[0]);
                left[a / 2][lane].at[a % 2 + 2] = factor(e.at[1]);
            }
        });
        // Loading while the products are computed.
        if (kReadsAhead<T, quads>) load(lesser(step + 1, 3));
        sums.add(left, right);
    }
    FASTSEQ_UNROLL(4)
    for (int a = 0; a < 4; ++a) totals[a] = W::template sum<1, 4>(totals[a]);
    // Half of the rows at a time; all their numbers are requested before the first is needed.
    FASTSEQ_UNROLL(2)
    for (int part = 0; part < 2; ++part) {
        struct Numbers {
            Quad<T> own[4], held[4];
        };
        typename W::template Reg<Numbers> numbers;
        const auto row_of = [&](int lane, int k) { return lane / 4 + 16 * part + 8 * (k / 2); };
        const auto channel_of = [&](int lane, int k) {
            return 32 * chunk + 8 * (lane % 4) + 4 * (k % 2);
        };
        const auto count_of = [&](int lane, int k) {
            return row_of(lane, k) < rows ? lesser(4, own.channels - channel_of(lane, k)) : 0;
        };
        const auto place_of = [&](int lane, int k) {
            return out + static_cast<long long>(row_of(lane, k)) * own.channels + channel_of(lane, k);
        };
        W::each([&](int lane) {
            FASTSEQ_UNROLL(4)
            for (int k = 0; k < 4; ++k) {
                numbers[lane].own[k] = own.raw(row_of(lane, k), channel_of(lane, k));
                numbers[lane].held[k] = held_numbers<of_y, quads>(
                    place_of(lane, k), first ? 0 : count_of(lane, k));
            }
        });
        W::each([&](int lane) {
            FASTSEQ_UNROLL(4)
            for (int k = 0; k < 4; ++k) {
                const int a = 2 * part + k / 2, e = 2 * (k / 2) + k % 2;
                const Quad<T> z = difference(numbers[lane].own[k], own.mean(channel_of(lane, k)));
                Quad<T> value = numbers[lane].held[k];
                FASTSEQ_UNROLL(4)
                for (int b = 0; b < 4; ++b) {
                    value.at[b] += fused(totals[a][lane], z.at[b], -sums.sum(part, b, lane, e));
                }
                hold_numbers<of_y, quads>(place_of(lane, k), value, count_of(lane, k));
            }
        });
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
