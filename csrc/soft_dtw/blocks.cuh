// Costs and gradients of one block of 32 x 32 cells, as the work of single threads: the device
// runs them side by side, the host one after the other.
#pragma once

#include "tile.cuh"

namespace fastseq {
namespace soft_dtw {

// Squared distances: 128 threads, each rows r, r + 16 and columns c, c + 8, c + 16, c + 24. The
// channels come in chunks of 32 through two buffers [row][33], whose pitch avoids bank conflicts.
constexpr int kCostThreads = 128;
constexpr int kChunk = 32;
constexpr int kPitch = kChunk + 1;
constexpr int kPerThread = kBlock / kCostThreads;

// Elements (row, channel) of 32 rows from `rows` on, 0 beyond `count` rows and `channels`.
template <class T>
FASTSEQ_FN void load_chunk(const T* rows, int count, int channels, int first_channel, int thread,
                           T (&out)[kPerThread]) {
    const int d = first_channel + thread % kChunk;
    for (int e = 0; e < kPerThread; ++e) {
        const int row = thread / kChunk + e * (kCostThreads / kChunk);
        out[e] = row < count && d < channels ? rows[static_cast<long long>(row) * channels + d] : T(0);
    }
}

template <class T>
FASTSEQ_FN void store_chunk(T* buffer, int thread, const T (&in)[kPerThread]) {
    for (int e = 0; e < kPerThread; ++e) {
        const int row = thread / kChunk + e * (kCostThreads / kChunk);
        buffer[row * kPitch + thread % kChunk] = in[e];
    }
}

template <class T>
FASTSEQ_FN void add_distances(const T* xs, const T* ys, int thread, T (&sums)[kPerThread]) {
    const int row = thread / 8, column = thread % 8;
    FASTSEQ_UNROLL(4)
    for (int d = 0; d < kChunk; ++d) {
        for (int a = 0; a < 2; ++a) {
            for (int c = 0; c < 4; ++c) {
                const T gap = xs[(row + 16 * a) * kPitch + d] - ys[(column + 8 * c) * kPitch + d];
                sums[4 * a + c] = fused(gap, gap, sums[4 * a + c]);
            }
        }
    }
}

template <class T>
FASTSEQ_FN void store_distances(T* block, int thread, const T (&sums)[kPerThread], T scale) {
    const int row = thread / 8, column = thread % 8;
    for (int a = 0; a < 2; ++a) {
        for (int c = 0; c < 4; ++c) {
            block[(row + 16 * a) * kLanes + column + 8 * c] = sums[4 * a + c] * scale;
        }
    }
}

// Costs that are given instead: [row][pitch] from `costs` on, of which `rows` x `columns` are real.
template <class T>
FASTSEQ_FN void copy_costs(const T* costs, long long pitch, int rows, int columns, int thread,
                           T scale, T* block) {
    for (int cell = thread; cell < kBlock; cell += kCostThreads) {
        const int row = cell / kLanes, column = cell % kLanes;
        block[cell] = row < rows && column < columns ? costs[row * pitch + column] * scale : T(0);
    }
}

template <class T>
struct alignas(16) Quad {
    T at[4];
};

// One channel of the gradients of a block: sum_j E_ij (x_i - y_j) to gx(row, sum), 8 rows at a
// time, and sum_i E_ij (y_j - x_i) into gy. x and y point at the channel in the block's first row
// and column, `pitch` apart; `rows` and `columns` of them are real.
template <class T, class SinkX>
FASTSEQ_FN void gradient_channel(const T* es, const T* x, int rows, const T* y, int columns,
                                 int pitch, T (&gy)[kLanes], const SinkX& sink_x) {
    constexpr int kGroup = 8;
    FASTSEQ_UNROLL(32)
    for (int c = 0; c < kLanes; ++c) gy[c] = T(0);
    FASTSEQ_UNROLL(1)
    for (int first = 0; first < kLanes; first += kGroup) {
        T xs[kGroup], gx[kGroup];
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kGroup; ++r) {
            xs[r] = first + r < rows ? x[static_cast<long long>(first + r) * pitch] : T(0);
            gx[r] = T(0);
        }
        FASTSEQ_UNROLL(8)
        for (int c = 0; c < kLanes; c += 4) {
            T ys[4];
            FASTSEQ_UNROLL(4)
            for (int q = 0; q < 4; ++q) {
                ys[q] = c + q < columns ? y[static_cast<long long>(c + q) * pitch] : T(0);
            }
            FASTSEQ_UNROLL(8)
            for (int r = 0; r < kGroup; ++r) {
                const Quad<T> e = *reinterpret_cast<const Quad<T>*>(es + (first + r) * kLanes + c);
                FASTSEQ_UNROLL(4)
                for (int q = 0; q < 4; ++q) {
                    const T gap = xs[r] - ys[q];
                    gx[r] = fused(e.at[q], gap, gx[r]);
                    gy[c + q] = fused(-e.at[q], gap, gy[c + q]);
                }
            }
        }
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kGroup; ++r) sink_x(first + r, gx[r]);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
