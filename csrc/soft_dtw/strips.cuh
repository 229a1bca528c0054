// What the two kernels share: which strip a thread block takes, and its costs.
#pragma once

#include "blocks.cuh"
#include "problem.cuh"

namespace fastseq {
namespace soft_dtw {

// Channels on their way to costs; costs that are given need none.
template <class Kind>
struct CostBuffers {
    typename Kind::Number x[kLanes * kPitch], y[kLanes * kPitch];
};
template <class T>
struct CostBuffers<Costs<T>> {};

// The strip of this thread block, counted in the order in which strips depend on each other, and
// its batch entry. `sync` is zeroed before each launch: a ticket counter, then the flags of the
// strips. Strips are given out by ticket, so that a thread block waits only for blocks that have
// started. With `only_strip` >= 0 a launch has one thread block per batch entry and no flags: the
// launches themselves keep the order.
struct Turn {
    int strip, b;
};

FASTSEQ_FN Turn take_turn(int* sync, int only_strip, int batch, int& ticket) {
    if (only_strip >= 0) return {only_strip, static_cast<int>(blockIdx.x)};
    if (threadIdx.x == 0) ticket = atomicAdd(sync, 1);
    __syncthreads();
    return {ticket / batch, ticket % batch};
}

template <class T>
FASTSEQ_FN void cost_block(const Problem<Costs<T>>& p, const Strip& strip, int b, int block,
                           double* ring, CostBuffers<Costs<T>>&, int thread) {
    const int i = strip.first_row, j = block * kLanes;
    copy_costs(p.cost_at(b, i, j), p.columns, strip.n - i, strip.m - j, thread, p.scale,
               ring_block(ring, block));
}

template <class T>
FASTSEQ_FN void cost_block(const Problem<Embeddings<T>>& p, const Strip& strip, int b, int block,
                           T* ring, CostBuffers<Embeddings<T>>& buffers, int thread) {
    T* out = ring_block(ring, block);
    const int i = strip.first_row, j = block * kLanes;
    const T* x = p.x_row(b, i);
    const T* y = p.y_row(b, j);
    T sums[kPerThread] = {}, next_x[kPerThread], next_y[kPerThread];
    load_chunk(x, strip.n - i, p.channels, 0, thread, next_x);
    load_chunk(y, strip.m - j, p.channels, 0, thread, next_y);
    for (int d = 0; d < p.channels; d += kChunk) {
        meet<1, kCostThreads>();  // all have read the chunk before
        store_chunk(buffers.x, thread, next_x);
        store_chunk(buffers.y, thread, next_y);
        meet<1, kCostThreads>();
        load_chunk(x, strip.n - i, p.channels, d + kChunk, thread, next_x);
        load_chunk(y, strip.m - j, p.channels, d + kChunk, thread, next_y);
        add_distances(buffers.x, buffers.y, thread, sums);
    }
    store_distances(out, thread, sums, p.scale);
}

// h above a strip at column 32 t + lane. Past L1: in the forward another block has just written it.
template <class Kind>
FASTSEQ_FN typename Kind::State load_top(const Problem<Kind>& p, const Strip& strip, int b, int t,
                                         int lane) {
    const int j = t * kLanes + lane;
    if (strip.index == 0 || j >= p.width()) return 0;
    return __ldcg(p.border(p.h, b, strip.index - 1) + j);
}

}  // namespace soft_dtw
}  // namespace fastseq
