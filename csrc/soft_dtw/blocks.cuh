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
    const int first_row = thread / kChunk, step = kCostThreads / kChunk;
    const T* at = rows + static_cast<long long>(first_row) * channels + d;
    for (int e = 0; e < kPerThread; ++e, at += static_cast<long long>(step) * channels) {
        out[e] = first_row + e * step < count && d < channels ? *at : T(0);
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
    // A sum per chunk, so that rounding grows with the chunk and the number of chunks.
    T chunk[kPerThread] = {};
    const int row = thread / 8, column = thread % 8;
    FASTSEQ_UNROLL(4)
    for (int d = 0; d < kChunk; ++d) {
        for (int a = 0; a < 2; ++a) {
            for (int c = 0; c < 4; ++c) {
                const T gap = xs[(row + 16 * a) * kPitch + d] - ys[(column + 8 * c) * kPitch + d];
                chunk[4 * a + c] = fused(gap, gap, chunk[4 * a + c]);
            }
        }
    }
    for (int e = 0; e < kPerThread; ++e) sums[e] += chunk[e];
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
                           T scale, double* block) {
    for (int cell = thread; cell < kBlock; cell += kCostThreads) {
        const int row = cell / kLanes, column = cell % kLanes;
        const double u = row < rows && column < columns
                             ? static_cast<double>(costs[row * pitch + column]) * scale
                             : 0.0;
        block[cell] = u < 0 ? u + (u - u) : u;  // -inf becomes NaN: a path through it has no weight
    }
}

template <class T>
struct alignas(16) Quad {
    T at[4];
};

// One channel of the gradients of half a block, 32 rows x 16 columns: more would not stay in
// registers. gx_i gets sum_j E_ij (x_i - y_j) on top of what it holds (`first`: it holds nothing
// yet), gy_j becomes sum_i E_ij (y_j - x_i). x, y and gx (or null) point at the channel in the
// first row or column, `pitch` apart; rows_x and rows_y of x and y are real, rows_gx of gx are
// there. The factor 2 of the derivative is in E.
constexpr int kHalf = kLanes / 2;

template <class T>
FASTSEQ_FN void gradient_channel(const T* es, const T* x, int rows_x, const T* y, int rows_y,
                                 int pitch, T* gx, int rows_gx, bool first, T (&gy)[kHalf]) {
    constexpr int kGroup = 4;
    FASTSEQ_UNROLL(16)
    for (int c = 0; c < kHalf; ++c) gy[c] = T(0);
    FASTSEQ_UNROLL(1)
    for (int i = 0; i < kLanes; i += kGroup, es += kGroup * kLanes) {
        T xs[kGroup], sums[kGroup];
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kGroup; ++r, x += pitch) {
            xs[r] = i + r < rows_x ? *x : T(0);
            sums[r] = T(0);
        }
        const T* p_y = y;
        forget(p_y);
        forget(rows_y);
        FASTSEQ_UNROLL(4)
        for (int c = 0; c < kHalf; c += 4) {
            T ys[4];
            FASTSEQ_UNROLL(4)
            for (int q = 0; q < 4; ++q, p_y += pitch) ys[q] = c + q < rows_y ? *p_y : T(0);
            FASTSEQ_UNROLL(8)
            for (int r = 0; r < kGroup; ++r) {
                const Quad<T> e = *reinterpret_cast<const Quad<T>*>(es + r * kLanes + c);
                FASTSEQ_UNROLL(4)
                for (int q = 0; q < 4; ++q) {
                    const T gap = xs[r] - ys[q];
                    sums[r] = fused(e.at[q], gap, sums[r]);
                    gy[c + q] = fused(-e.at[q], gap, gy[c + q]);
                }
            }
        }
        if (!gx) continue;
        T held[kGroup];
        T* p_gx = gx + static_cast<long long>(i) * pitch;
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kGroup; ++r) {
            held[r] = !first && i + r < rows_gx ? p_gx[static_cast<long long>(r) * pitch] : T(0);
        }
        FASTSEQ_UNROLL(8)
        for (int r = 0; r < kGroup; ++r, p_gx += pitch) {
            if (i + r < rows_gx) *p_gx = held[r] + sums[r];
        }
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
