// The backward kernel. README.md says why it is right.
#pragma once

#include "strips.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kGradientThreads = 128;
constexpr int kGradientWarps = kGradientThreads / kLanes;
constexpr int kBackwardThreads = 3 * kLanes + kCostThreads + kGradientThreads;

template <class Kind>
struct Backward {
    using T = typename Kind::Number;

    Problem<Kind> p;
    const T* grad;         // [batch]
    T *dx, *dy, *dcost;    // as x, y, cost; null: not asked for
    T* flux;               // [batch, strips, width]: what each strip hands up
    int* sync;             // 1 + (1 + 4) * batch * strips
    int only_strip;

    // Flags of a strip: phases that are over, counted from the right; and blocks, of each warp that
    // adds up dy.
    FASTSEQ_FN int* phase_flag(int b, int strip) const {
        return only_strip < 0 ? sync + 1 + p.strip_at(b, strip) : nullptr;
    }
    FASTSEQ_FN int* block_flag(int b, int strip, int warp) const {
        const long long strips = 1ll * p.batch * p.strips();
        return only_strip < 0 ? sync + 1 + strips + p.strip_at(b, strip) * kGradientWarps + warp
                              : nullptr;
    }
};

template <class Kind>
struct BackwardShared {
    using T = typename Kind::Number;
    using State = typename Kind::State;

    State costs[kRing * kBlock];
    T es[kRing * kBlock];
    T weights[2][2 * kBlock];
    State top[kLanes];
    T bottom[2][kLanes];
    CostBuffers<Kind> buffers;
    int ticket;
    Strip strip;
};

template <class T>
FASTSEQ_FN void fill_zero(T* begin, long long count) {
    for (long long at = threadIdx.x; at < count; at += blockDim.x) begin[at] = T(0);
}

// What no block of the strip's cells writes: padding, and costs outside the band.
template <class Kind>
FASTSEQ_FN void fill_rest(const Backward<Kind>& a, const Strip& strip, int b) {
    using T = typename Kind::Number;
    const Problem<Kind>& p = a.p;
    const int i = strip.first_row, rows = lesser(kLanes, p.rows - i);
    const bool empty = strip.empty();
    if (a.dx && empty) fill_zero(a.dx + (p.x_row(b, i) - p.x), 1ll * rows * p.channels);
    const int written = empty ? 0 : lesser(p.columns, (strip.last_block() + 1) * kLanes);
    if (a.dy && (empty ? strip.index == 0 && (strip.n == 0 || strip.m == 0) : strip.is_last())) {
        fill_zero(a.dy + (p.y_row(b, written) - p.y), 1ll * (p.columns - written) * p.channels);
    }
    for (int r = 0; a.dcost && r < rows; ++r) {
        T* row = a.dcost + (p.cost_at(b, i + r, 0) - p.cost);
        if (!empty) fill_zero(row, strip.first_block() * kLanes);
        fill_zero(row + written, p.columns - written);
    }
}

// Gradients of one block. Strips add to dy from the last to the first, each warp its own channels.
template <class T>
FASTSEQ_FN void gradient_block(const Backward<Costs<T>>& a, const Strip& strip, int b, int block,
                               const T* es, int thread) {
    const Problem<Costs<T>>& p = a.p;
    const int i = strip.first_row, j = block * kLanes;
    const int rows = lesser(kLanes, p.rows - i), columns = lesser(kLanes, p.columns - j);
    T* out = a.dcost + (p.cost_at(b, i, j) - p.cost);
    for (int cell = thread; cell < kBlock; cell += kGradientThreads) {
        const int r = cell / kLanes, c = cell % kLanes;
        if (r < rows && c < columns) out[1ll * r * p.columns + c] = es[cell];
    }
}

template <class T>
FASTSEQ_FN void gradient_block(const Backward<Embeddings<T>>& a, const Strip& strip, int b,
                               int block, const T* es, int thread) {
    const Problem<Embeddings<T>>& p = a.p;
    const int i = strip.first_row, j = block * kLanes;
    const int rows = lesser(kLanes, p.rows - i), columns = lesser(kLanes, p.columns - j);
    const bool first_x = block == strip.last_block();
    const bool first_y = strip.is_last() || block < strip.neighbour(1).first_block();
    const int warp = thread / kLanes;
    if (!first_y) wait_for(a.block_flag(b, strip.index + 1, warp), p.blocks() - block);
    bool some = first_x || first_y;  // far from the path E is exactly 0: nothing to add
    FASTSEQ_UNROLL(4)
    for (int cell = thread % kLanes; cell < kBlock; cell += kLanes) some |= es[cell] != T(0);
    if (__any_sync(0xffffffffu, some)) {
        for (int d = thread; d < p.channels; d += kGradientThreads) {
            FASTSEQ_UNROLL(1)
            for (int c = 0; c < columns; c += kHalf) {
                T gy[kHalf];
                int pitch = p.channels;
                forget(pitch);
                gradient_channel(es + c, p.x_row(b, i) + d, strip.n - i, p.y_row(b, j + c) + d,
                                 strip.m - j - c, pitch,
                                 a.dx ? a.dx + (p.x_row(b, i) - p.x) + d : nullptr, rows,
                                 first_x && c == 0, gy);
                if (!a.dy) continue;
                T* out = a.dy + (p.y_row(b, j + c) - p.y) + d;
                T held[kHalf];
                const T* p_held = out;
                FASTSEQ_UNROLL(16)
                for (int q = 0; q < kHalf; ++q, p_held += pitch) {
                    held[q] = !first_y && c + q < columns ? __ldcg(p_held) : T(0);
                }
                FASTSEQ_UNROLL(16)
                for (int q = 0; q < kHalf; ++q, out += pitch) {
                    if (c + q < columns) *out = held[q] + gy[q];
                }
            }
        }
    }
    __syncwarp();  // orders the warp's writes before the flag of its first lane
    forget(b);
    forget(block);
    if (thread % kLanes == 0) {
        publish(a.block_flag(b, strip.index, warp), p.blocks() - block);
    }
}

// The tasks of the backward. All go through the same phases t, from two after the last one of the
// strip to one before the first, and meet after each; at t they work on different tiles.
template <class Kind>
struct BackwardTasks {
    using T = typename Kind::Number;
    using State = typename Kind::State;

    const Backward<Kind>& a;
    const Problem<Kind>& p;
    const Strip& strip;  // in shared memory: registers are short
    BackwardShared<Kind>& mem;
    int b, lane;

    template <class Step>
    FASTSEQ_FN void walk(const Step& step) const {
        FASTSEQ_UNROLL(1)
        for (int t = strip.last_phase() + 2; t >= strip.first_phase() - 1; --t) {
            step(t);
            __syncthreads();
        }
    }
    FASTSEQ_FN bool has_phase(int t) const {
        return t >= strip.first_phase() && t <= strip.last_phase();
    }
    FASTSEQ_FN bool has_block(int block) const {
        return block >= strip.first_block() && block <= strip.last_block();
    }
    // Phase t of E.
    FASTSEQ_FN void flux() const {
        const Strip here = strip;
        Flux<DeviceWarp, T> flux;
        flux.clear();
        const T grad = (Kind::given ? 1 : 2) * a.grad[b];  // 2: the derivative of the square
        int* p_done = a.phase_flag(b, strip.index);
        walk([&](int t) {
            if (!has_phase(t)) return;
            flux_phase<DeviceWarp, Kind>(here, t, mem.weights[t % 2], mem.bottom[t % 2], grad, flux,
                                         mem.es, p.border(a.flux, b, strip.index), p.width());
            if (lane == 0) publish(p_done, p.phases() - t);  // the lane that wrote the border
        });
    }

    // The weights of phase t - 1. What they start from is read one phase ahead.
    FASTSEQ_FN void recompute() const {
        const Strip here = strip;
        State next_h = 0, next_v = 0, next_top = 0;
        const auto read_ahead = [&](int t) {
            if (!has_phase(t)) return;
            next_h = p.state(b, strip.index, t)[lane];
            next_v = p.state(b, strip.index, t)[kLanes + lane];
            next_top = load_top(p, strip, b, t, lane);
        };
        walk([&](int t) {
            States<DeviceWarp, Kind> h{next_h}, v{next_v};
            mem.top[lane] = next_top;
            read_ahead(t - 2);
            if (!has_phase(t - 1)) return;
            __syncwarp();
            recompute_phase<DeviceWarp, Kind>(here, t - 1, mem.costs, mem.top, h, v,
                                              mem.weights[(t - 1) % 2]);
        });
    }

    // What the strip below hands up to phase t - 1: it comes from phases t - 1 and t - 2 there.
    FASTSEQ_FN void fetch() const {
        const int below = strip.index + 1, below_first = strip.neighbour(1).first_phase();
        const int* p_below = a.phase_flag(b, below);
        walk([&](int t) {
            if (!has_phase(t - 1)) return;
            const int j = (t - 1) * kLanes + lane - (kLanes - 1);
            T handed = T(0);
            if (!strip.is_last()) {
                wait_for(p_below, p.phases() - larger(t - 2, below_first));
                if (j >= 0 && j < p.width()) handed = __ldcg(p.border(a.flux, b, below) + j);
            }
            mem.bottom[(t - 1) % 2][lane] = handed;
        });
    }

    // Block t - 3 of the costs.
    FASTSEQ_FN void costs(int thread) const {
        walk([&](int t) {
            if (has_block(t - 3)) cost_block(p, strip, b, t - 3, mem.costs, mem.buffers, thread);
        });
    }

    // Block t + 1 of the gradients.
    FASTSEQ_FN void gradients(int thread) const {
        walk([&](int t) {
            if (!has_block(t + 1)) return;
            int entry = b;
            forget(entry);  // addresses are not worth registers from phase to phase
            gradient_block(a, strip, entry, t + 1, ring_block(mem.es, t + 1), thread);
        });
    }
};

template <class Kind>
__global__ void __launch_bounds__(kBackwardThreads, sizeof(typename Kind::Number) == 4 ? 2 : 1)
    backward_kernel(const Backward<Kind> a) {
    auto& mem = shared_memory<BackwardShared<Kind>>();
    const Turn turn = take_turn(a.sync, a.only_strip, a.p.batch, mem.ticket);
    const Strip strip = a.p.strip(a.p.strips() - 1 - turn.strip, turn.b);
    fill_rest(a, strip, turn.b);
    if (strip.empty()) return;
    if (threadIdx.x == 0) mem.strip = strip;
    __syncthreads();
    const int lane = threadIdx.x % kLanes;
    const BackwardTasks<Kind> tasks{a, a.p, mem.strip, mem, turn.b, lane};
    constexpr int kFirstCost = 3 * kLanes, kFirstGradient = kFirstCost + kCostThreads;
    if (threadIdx.x < kLanes) {
        tasks.flux();
    } else if (threadIdx.x < 2 * kLanes) {
        tasks.recompute();
    } else if (threadIdx.x < kFirstCost) {
        tasks.fetch();
    } else if (threadIdx.x < kFirstGradient) {
        tasks.costs(threadIdx.x - kFirstCost);
    } else {
        tasks.gradients(threadIdx.x - kFirstGradient);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
