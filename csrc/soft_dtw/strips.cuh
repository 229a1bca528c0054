// Code that both kernels share: which strip a thread block processes, and its costs.
#pragma once

#include "costs.cuh"
#include "problem.cuh"

namespace fastseq {
namespace soft_dtw {

// Given costs are processed in one part.
struct NoParts {};
template <class Kind>
struct PartsOf {
    using Type = CostParts<typename Kind::Number>;
};
template <class T, class M>
struct PartsOf<Costs<T, M>> {
    using Type = NoParts;
};

template <class T>
FASTSEQ_FN bool aligned(const T* address) {
    return reinterpret_cast<unsigned long long>(address) % 16 == 0;
}

// Whether four channels can be read and written at once.
template <class T, class M>
FASTSEQ_FN bool in_quads(const Problem<Embeddings<T, M>>& p) {
    return p.channels % 4 == 0 && aligned(p.x) && aligned(p.y);
}

// Frames of the strip and of block `block`'s columns.
template <bool quads, class T, class M>
FASTSEQ_FN Frames<T, quads> rows_of(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b,
                                    const T* centre) {
    const int i = strip.first_row;
    return {p.x_row(b, i), strip.real - i, p.channels, centre};
}
template <bool quads, class T, class M>
FASTSEQ_FN Frames<T, quads> columns_of(const Problem<Embeddings<T, M>>& p, const Strip& strip,
                                       int b, int block, const T* centre) {
    const int j = block * kLanes;
    return {p.y_row(b, j), strip.m - j, p.channels, centre};
}
// The scaled bias of a block's columns; like frames, columns beyond the last real one read that one.
template <class T, class M>
struct Bias {
    const Problem<Embeddings<T, M>>& p;
    const Strip& strip;
    int b, block;
    T scale;

    template <int count, class Column>
    FASTSEQ_FN void read(T (&out)[count], const Column& column) const {
        FASTSEQ_UNROLL(4)
        for (int k = 0; k < count; ++k) out[k] = T(0);
        if (!p.bias) return;
        FASTSEQ_UNROLL(4)
        for (int k = 0; k < count; ++k) {
            const int j = lesser(block * kLanes + column(k), strip.m - 1);
            out[k] = p.bias[p.column_at(b, j)] * scale;
        }
    }
};

// In a kernel, on the device or simulated.
#if defined(__CUDACC__) || defined(FASTSEQ_SIMULATED)

// The strip of this thread block, counted in the order in which strips depend on each other, and
// its batch entry. A ticket counter, -1 before the launch, assigns the strips, so that a thread
// block waits only for blocks that have started. With `only_strip` >= 0 a launch has one thread
// block per batch entry: the order of the launches replaces all waiting.
struct Turn {
    int strip, b;
};

FASTSEQ_FN Turn take_turn(int* tickets, int only_strip, int batch, int& ticket) {
    if (only_strip >= 0) return {only_strip, static_cast<int>(blockIdx.x)};
    if (threadIdx.x == 0) ticket = atomicAdd(tickets, 1) + 1;
    __syncthreads();
    return {ticket / batch, ticket % batch};
}

// The centre lies behind a kernel's shared structure; the launch requests that many bytes more.
template <class Kind, class Shared>
FASTSEQ_FN typename Kind::Number* centre_of(Shared& mem) {
    return reinterpret_cast<typename Kind::Number*>(&mem + 1);
}

template <class T, class M>
FASTSEQ_FN void find_centre(const Problem<Costs<T, M>>&, const Strip&, int, T*) {}
template <class T, class M>
FASTSEQ_FN void find_centre(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b,
                            T* centre) {
    mean_frame(rows_of<false>(p, strip, b, centre), centre, threadIdx.x, blockDim.x);
}

template <class T, class M>
FASTSEQ_FN void cost_block(const Problem<Costs<T, M>>& p, const Strip& strip, int b, int block,
                           T scale, double* out, NoParts&, const T*, int thread) {
    const int i = strip.first_row, j = block * kLanes;
    copy_costs(p.cost_at(b, i, j), p.columns, strip.real - i, strip.m - j, thread, scale, out);
}

template <bool quads, class T, class Bias>
FASTSEQ_FN void cost_block_of(const Frames<T, quads>& x, const Frames<T, quads>& y,
                              const Bias& bias, T scale, T* out, CostParts<T>& parts,
                              int thread) {
    const int warp = thread / kLanes, side = warp % 2, half = warp / 2;
    Distances<DeviceWarp, T> d;
    distances<DeviceWarp>(x, y, side, half, d);
    if (half == 1) leave_part<DeviceWarp>(d, side, parts);
    if (thread == 0) parts.close = 0;
    meet<1, kCostThreads>();
    if (half == 0 && write_distances<DeviceWarp>(d, side, parts, scale, bias, out)) {
        parts.close = 1;
    }
    if (sizeof(T) == 8) return;
    meet<1, kCostThreads>();
    if (parts.close) write_differences(x, y, thread, scale, bias, out);
}

template <class T, class M>
FASTSEQ_FN void cost_block(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b, int block,
                           T scale, T* out, CostParts<T>& parts, const T* centre, int thread) {
    const Bias<T, M> bias{p, strip, b, block, scale};
    const auto in = [&](auto quads) {
        constexpr bool yes = decltype(quads)::value;
        cost_block_of(rows_of<yes>(p, strip, b, centre), columns_of<yes>(p, strip, b, block, centre),
                      bias, scale, out, parts, thread);
    };
    if (in_quads(p)) {
        in(Known<true>());
    } else {
        in(Known<false>());
    }
}

#endif

}  // namespace soft_dtw
}  // namespace fastseq
