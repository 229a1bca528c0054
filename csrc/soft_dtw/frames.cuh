// Frames of a block of 32 x 32 cells and sums of their products, in registers of warps.
#pragma once

#include "memory.cuh"
#include "product.cuh"
#include "tile.cuh"

namespace fastseq {
namespace soft_dtw {

// Frames are taken relative to the mean of the strip's frames of x. Costs and gradients do not
// change, but their rounding does: products of numbers far from 0 lose digits of the differences.
// Shared memory has room for the mean of so many channels; the channels beyond are not centred.
template <class T>
constexpr int kCentred = sizeof(T) == 4 ? 2048 : 512;

// Frames are read while the products of earlier ones are computed; with double the registers have
// no room for both, nor for the addresses of single channels.
template <class T, bool quads>
constexpr bool kReadsAhead = sizeof(T) == 4 && quads;

// The 32 frames of a strip or a block. Frames beyond the last real one read that one: their cells
// are never read and their E is 0, but padding may contain NaN.
// `quads`: four channels can be read and written at once.
template <class T, bool quads>
struct Frames {
    const T* first;
    int count;  // real frames from there on; 0 if the frame before is the last real one
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
            const bool has = d < lesser(channels, kCentred<T>);
            if (has) out = *reinterpret_cast<const Quad<T>*>(centre + d);
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

// Writes the centre, the mean of the strip's frames, by `threads` threads.
template <class T, bool quads>
FASTSEQ_FN void mean_frame(const Frames<T, quads>& frames, T* centre, int thread, int threads) {
    const int count = lesser(larger(frames.count, 1), kLanes);
    for (int d = thread; d < lesser(frames.channels, kCentred<T>); d += threads) {
        T sum = T(0);
        FASTSEQ_UNROLL(8)
        for (int row = 0; row < count; ++row) sum += *frames.at(row, d);
        centre[d] = sum / static_cast<T>(count);
    }
}

// Sums of 16 x 8 cells each, for 16 * height rows and 8 * width columns.
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

}  // namespace soft_dtw
}  // namespace fastseq
