// Costs and gradients of one block of 32 x 32 cells, as the work of warps.
#pragma once

#include "memory.cuh"
#include "product.cuh"
#include "tile.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kCostThreads = 128;
constexpr int kCostWarps = kCostThreads / kLanes;
constexpr int kGradientThreads = 128;
constexpr int kGradientWarps = kGradientThreads / kLanes;

// Frames are taken less the mean of the strip's frames of x, which costs and gradients do not notice
// but their rounding does: products of numbers far from 0 lose what their differences hold. So many
// channels have a mean, which shared memory has room for; those beyond stay as they are.
template <class T>
constexpr int kCentred = sizeof(T) == 4 ? 2048 : 512;

// Frames are read while the products of those before are formed; the registers do not hold both of
// double, nor the addresses of single channels.
template <class T, bool quads>
constexpr bool kReadsAhead = sizeof(T) == 4 && quads;

// Up to 32 frames. One beyond the last real one is taken as that one: its cells are never read and
// its E is 0, but what padding holds may be NaN.
// `quads`: four channels can be read and written at once.
template <class T, bool quads>
struct Frames {
    const T* first;
    int count;  // of real ones; 0 where the frame before the first is the last real one
    int channels;
    const T* centre;  // [min(channels, kCentred)], the same for x and y

    FASTSEQ_FN const T* at(int row, int d) const {
        return first + static_cast<long long>(lesser(row, count - 1)) * channels + d;
    }
    FASTSEQ_FN Quad<T> raw(int row, int d) const {
        Quad<T> out{T(0), T(0), T(0), T(0)};
        if constexpr (quads) {
            if (d < channels) out = *reinterpret_cast<const Quad<T>*>(at(row, d));
        } else {
            FASTSEQ_UNROLL(4)
            for (int k = 0; k < 4; ++k) out.at[k] = d + k < channels ? at(row, d)[k] : T(0);
        }
        return out;
    }
    FASTSEQ_FN Quad<T> mean(int d) const {
        Quad<T> out{T(0), T(0), T(0), T(0)};
        if constexpr (quads) {
            if (d < lesser(channels, kCentred<T>)) out = *reinterpret_cast<const Quad<T>*>(centre + d);
        } else {
            FASTSEQ_UNROLL(4)
            for (int k = 0; k < 4; ++k) {
                if (d + k < lesser(channels, kCentred<T>)) out.at[k] = centre[d + k];
            }
        }
        return out;
    }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T at[2];
};

template <class T>
FASTSEQ_FN Quad<T> difference(const Quad<T>& a, const Quad<T>& b) {
    return {a.at[0] - b.at[0], a.at[1] - b.at[1], a.at[2] - b.at[2], a.at[3] - b.at[3]};
}

// Writes the centre, by `threads` threads.
template <class T, bool quads>
FASTSEQ_FN void mean_frame(const Frames<T, quads>& frames, T* centre, int thread, int threads) {
    const int count = larger(frames.count, 1);
    for (int d = thread; d < lesser(frames.channels, kCentred<T>); d += threads) {
        T sum = T(0);
        FASTSEQ_UNROLL(8)
        for (int row = 0; row < count; ++row) sum += *frames.at(row, d);
        centre[d] = sum / static_cast<T>(count);
    }
}

// Sums that belong to 16 x 8 cells each, of 16 * height rows and 8 * width columns.
template <class W, class T, int height, int width>
struct Tiles {
    typename W::template Reg<Sums<T>> at[height][width], rest[height][width];

    FASTSEQ_FN void clear() {
        W::each([&](int lane) {
            FASTSEQ_UNROLL(2)
            for (int a = 0; a < height; ++a) {
                FASTSEQ_UNROLL(4)
                for (int b = 0; b < width; ++b) {
                    at[a][b][lane] = rest[a][b][lane] = {T(0), T(0), T(0), T(0)};
                }
            }
        });
    }
    template <class Lefts, class Rights>
    FASTSEQ_FN void add(const Lefts& left, const Rights& right) {
        add_pass<0>(left, right);
        add_pass<1>(left, right);
        add_pass<2>(left, right);
    }
    template <int pass, class Lefts, class Rights>
    FASTSEQ_FN void add_pass(const Lefts& left, const Rights& right) {
        FASTSEQ_UNROLL(2)
        for (int a = 0; a < height; ++a) {
            FASTSEQ_UNROLL(4)
            for (int b = 0; b < width; ++b) {
                add_product<pass>(at[a][b], rest[a][b], left[a], right[b]);
            }
        }
    }
    FASTSEQ_FN T sum(int a, int b, int lane, int e) const {
        return at[a][b][lane].at[e] + rest[a][b][lane].at[e];
    }
};

// Four numbers of a gradient, of which `count` are there. `handed`: another thread block wrote them, or
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

// What a warp has of squared distances |x|^2 + |y|^2 - 2 x y: all rows and the 16 columns of a side,
// over half of the channels.
template <class W, class T>
struct Distances {
    typename W::template Reg<Sums<T>> products[2][2];
    typename W::template Reg<T> of_x[4], of_y[2];  // squared norms of rows g + 8 a, columns g + 8 b
};

// Channels come in groups of 16, every other one for each half.
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
        if (kReadsAhead<T, quads>) load(group + 2);  // on their way while the products are formed
        FASTSEQ_UNROLL(2)
        for (int a = 0; a < 2; ++a) {
            // A sum per group, as tensor cores cut what they add to a float.
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

// The warps of the second half leave what they have in `parts`; those of the first add it to theirs
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

// Whether the norms have cancelled in a cell: a distance this far below them has lost digits, of
// which float has none to spare.
template <class T>
FASTSEQ_FN bool cancelled(T distance, T norms) {
    return sizeof(T) == 4 && distance < T(0.125) * norms;
}

// Returns whether that is so in some cell.
template <class W, class T>
FASTSEQ_FN bool write_distances(Distances<W, T>& d, int side, CostParts<T>& parts, T scale,
                                T* block) {
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
                    block[row * kLanes + 16 * side + 8 * b + 2 * (lane % 4) + e] = distance * scale;
                }
            });
        }
    }
    return W::any(close);
}

// Distances as sums of squared differences, which lose nothing, at four times the price: 128 threads,
// each of rows r, r + 16 and columns c, c + 8, c + 16, c + 24.
template <class T, bool quads>
FASTSEQ_FN void write_differences(const Frames<T, quads>& x, const Frames<T, quads>& y, int thread, T scale,
                                  T* block) {
    const int row = thread / 8, column = thread % 8;
    T sums[2][4] = {};
    FASTSEQ_UNROLL(1)
    for (int group = 0; group < x.channels; group += 32) {
        T part[2][4] = {};  // so that rounding grows with the group and the number of groups
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
            sums[cell / 4][cell % 4] * scale;
    }
}

// Costs that are given instead: [row][pitch] from `costs` on, of which `rows` x `columns` are real.
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

// Whether E is anything but 0 in a block: far from the path it is exactly 0.
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

// Gradients of one block for 32 channels from 32 * chunk on: dx_i = sum_j E_ij (x_i - y_j) of the
// rows, or of_y: dy_j = sum_i E_ij (y_j - x_i) of the columns, as (sum of E) own - E other. The
// factor 2 of the derivative is in E. They are added to `out`, [frame][channel], of which `rows` are
// there; `first`: it holds nothing yet. ready() returns when strips before this one have added theirs.
template <class W, bool of_y, class T, bool quads, class Ready>
FASTSEQ_FN void gradients(const T* es, const Frames<T, quads>& own, const Frames<T, quads>& other,
                          int chunk, T* out, int rows, bool first, const Ready& ready) {
    Tiles<W, T, 2, 4> sums;
    typename W::template Reg<T> totals[4];  // of E, of frames g + 8 a
    struct Loaded {
        Quad<T> at[2];
    };
    typename W::template Reg<Loaded> loaded;
    // Frame k of the two of `other` that a lane takes at each of four steps: any order will do that is
    // the same for E and for the frames themselves, so one without bank conflicts.
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
        if (kReadsAhead<T, quads>) load(lesser(step + 1, 3));  // on their way while the products are formed
        sums.add(left, right);
    }
    FASTSEQ_UNROLL(4)
    for (int a = 0; a < 4; ++a) totals[a] = W::template sum<1, 4>(totals[a]);
    // Half of the rows at a time, whose numbers are all asked for before any is needed.
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
