// The backward kernel. README.md explains why it is right.
#pragma once

#include "gradients.cuh"
#include "strips.cuh"

namespace fastseq {
namespace soft_dtw {

// The weights of a phase take longer than its E: two warps alternate if shared memory has room.
// With double, which needs twice as much, it has not.
template <class Kind>
constexpr int kWeighers = sizeof(typename Kind::Number) == 4 ? 2 : 1;
// Warps: E, the weights, one that passes dy on, costs, gradients.
template <class Kind>
constexpr int kFirstCost = (2 + kWeighers<Kind>)*kLanes;
template <class Kind>
constexpr int kBackwardThreads = kFirstCost<Kind> + kCostThreads + kGradientThreads;
template <class Kind>
constexpr int kBackwardRing = kWeighers<Kind> + 2;  // blocks of costs
template <class Kind>
constexpr int kWeightsRing = kWeighers<Kind> + 1;

template <class Kind>
struct Backward {
    using T = typename Kind::Number;

    Problem<Kind> p;
    const T* grad;               // [batch]
    T *dx, *dy, *dcost, *dbias;  // as x, y, cost, bias; null: not needed
    T* flux;       // [batch, strips, width]: flux passed up by each strip; all bits set first
    int* done;     // [batch, strips]: blocks of dy and dbias, counted from the right; below 0 first
    int* tickets;  // -1 first

    // Strips add to both in turn.
    FASTSEQ_FN bool has_columns() const { return dy || dbias; }
    int only_strip;
};

template <class Kind>
struct alignas(16) BackwardShared {
    using T = typename Kind::Number;
    using State = typename Kind::State;

    State costs[kBackwardRing<Kind> * kBlock];
    T es[3 * kEBlock];
    T weights[kWeightsRing<Kind>][2 * kBlock];
    typename PartsOf<Kind>::Type parts;
    int ticket;
    Strip strip;
};

template <class T>
FASTSEQ_FN void fill_zero(T* begin, long long count) {
    for (long long at = threadIdx.x; at < count; at += blockDim.x) begin[at] = T(0);
}

// Gradients outside all blocks of the strip's cells: padding, and costs outside the band.
template <class Kind>
FASTSEQ_FN void fill_rest(const Backward<Kind>& a, const Strip& strip, int b) {
    using T = typename Kind::Number;
    const Problem<Kind>& p = a.p;
    const int i = strip.first_row, rows = lesser(kLanes, p.rows - i);
    const bool empty = strip.empty();
    if (a.dx && empty) fill_zero(a.dx + (p.x_row(b, i) - p.x), 1ll * rows * p.channels);
    const int written = empty ? 0 : lesser(p.columns, (strip.last_block() + 1) * kLanes);
    if (empty ? strip.index == 0 && (strip.n == 0 || strip.m == 0) : strip.is_last()) {
        const int rest = p.columns - written;
        if (a.dy) fill_zero(a.dy + (p.y_row(b, written) - p.y), 1ll * rest * p.channels);
        if (a.dbias) fill_zero(a.dbias + p.column_at(b, written), rest);
    }
    for (int r = 0; a.dcost && r < rows; ++r) {
        T* row = a.dcost + (p.cost_at(b, i + r, 0) - p.cost);
        if (!empty) fill_zero(row, strip.first_block() * kLanes);
        fill_zero(row + written, p.columns - written);
    }
}

// Gradients of one block of given costs.
template <class T, class M>
FASTSEQ_FN void gradient_block(const Backward<Costs<T, M>>& a, const Strip& strip, int b, int block,
                               const T* es, const T*, int thread) {
    const Problem<Costs<T, M>>& p = a.p;
    const int i = strip.first_row, j = block * kLanes;
    const int rows = lesser(kLanes, p.rows - i), columns = lesser(kLanes, p.columns - j);
    T* out = a.dcost + (p.cost_at(b, i, j) - p.cost);
    for (int cell = thread; cell < kBlock; cell += kGradientThreads) {
        const int r = cell / kLanes, c = cell % kLanes;
        if (r < rows && c < columns) out[1ll * r * p.columns + c] = es[r * kEPitch + c];
    }
}

// Whether this strip is the first that writes dy and dbias of a block: strips add to them from the
// last one up.
FASTSEQ_FN bool begins_dy(const Strip& strip, int block) {
    return strip.is_last() || block < strip.neighbour(1).first_block();
}

// The same for embeddings. Each warp processes 32 channels of dx or of dy at a time.
template <class T, class M>
FASTSEQ_FN void gradient_block(const Backward<Embeddings<T, M>>& a, const Strip& strip, int b,
                               int block, const T* es, const T* centre, int thread) {
    const Problem<Embeddings<T, M>>& p = a.p;
    const int i = strip.first_row, j = block * kLanes;
    const bool first_x = block == strip.last_block(), first_y = begins_dy(strip, block);
    if (!first_x && !first_y && !any_flux<DeviceWarp>(es)) return;
    const auto below_is_done = [&] {
        if (first_y || a.only_strip >= 0) return;
        wait_until(a.done + p.strip_at(b, strip.index + 1), p.blocks() - block, p.patience);
    };
    const auto in = [&](auto quads) {
        const auto x = rows_of<decltype(quads)::value>(p, strip, b, centre);
        const auto y = columns_of<decltype(quads)::value>(p, strip, b, block, centre);
        FASTSEQ_UNROLL(1)
        for (int task = thread / kLanes; task < 2 * ((p.channels + 31) / 32);
             task += kGradientWarps) {
            int entry = b;
            forget(entry);
            if (task % 2 == 0 && a.dx) {
                gradients<DeviceWarp, false>(es, x, y, task / 2, a.dx + (p.x_row(entry, i) - p.x),
                                             p.rows - i, first_x, [] {});
            } else if (task % 2 == 1 && a.dy) {
                gradients<DeviceWarp, true>(es, y, x, task / 2, a.dy + (p.y_row(entry, j) - p.y),
                                            p.columns - j, first_y, below_is_done);
            }
        }
    };
    if (in_quads(p) && aligned(a.dx) && aligned(a.dy)) {
        in(Known<true>());
    } else {
        in(Known<false>());
    }
}

// dbias of one block, the sums of E over the rows, by one warp.
template <class T, class M>
FASTSEQ_FN void bias_block(const Backward<Costs<T, M>>&, const Strip&, int, int, const T*, int) {}
template <class T, class M>
FASTSEQ_FN void bias_block(const Backward<Embeddings<T, M>>& a, const Strip& strip, int b, int block,
                           const T* es, int lane) {
    if (!a.dbias) return;
    const Problem<Embeddings<T, M>>& p = a.p;
    const int j = block * kLanes + lane;
    const bool first = begins_dy(strip, block);
    const T sum = column_sums<DeviceWarp>(es).value;
    if (!first && !DeviceWarp::any({sum != T(0)})) return;
    if (!first && a.only_strip < 0) {
        wait_until(a.done + p.strip_at(b, strip.index + 1), p.blocks() - block, p.patience);
    }
    if (j >= p.columns) return;
    T* out = a.dbias + p.column_at(b, j);
    const T before = first ? T(0) : load_handed(out);
    store_handed(out, before + sum / 2);  // E includes the derivative of the square
}

// The tasks of the backward. All go through the same ticks t from right to left and meet after
// each; at tick t they work on different tiles.
template <class Kind>
struct BackwardTasks {
    using T = typename Kind::Number;
    using State = typename Kind::State;
    static constexpr int weighers = kWeighers<Kind>, ring = kBackwardRing<Kind>;

    const Backward<Kind>& a;
    const Problem<Kind>& p;
    const Strip& strip;  // in shared memory, to save registers
    BackwardShared<Kind>& mem;
    int b, lane;

    template <class Step>
    FASTSEQ_FN void walk(const Step& step) const {
        const int first = strip.first_phase(), last = strip.last_phase();
        FASTSEQ_UNROLL(1)
        for (int t = last + weighers + 1; t >= first - 2; --t) {
            step(t);
            __syncthreads();
        }
    }
    FASTSEQ_FN T* weights(int phase) const {
        return mem.weights[(phase + kWeightsRing<Kind>) % kWeightsRing<Kind>];
    }

    // Phase t of E.
    FASTSEQ_FN void flux() const {
        const Strip here = strip, under = here.neighbour(1);
        const int s = here.index, width = p.width();
        const T grad = (Kind::given ? 1 : 2) * a.grad[b];  // 2: the derivative of the square
        T* above = p.border(a.flux, b, s);
        // The first lane of the strip below wrote the columns of its phases.
        Feed<T, -1, 2 * kSteps> below{above + width, 0, 0, p.patience, 0, {T(0)}, T(0)};
        if (!here.is_last()) {
            below.begin = kLanes * under.first_phase();
            below.end = lesser(width, kLanes * (under.last_phase() + 1));
        }
        below.ask(kLanes * (here.last_phase() - 1) + 1, 1);
        Flux<DeviceWarp, T> flux;
        flux.clear();
        walk([&](int t) {
            if (!here.has_phase(t)) return;
            below.first = kLanes * (t - 1) + 1;
            flux_phase<DeviceWarp, Kind>(here, t, weights(t), below, grad, flux, mem.es,
                                         [&](int j, T value, auto inner) {
                                             if (inner.value || j < width) {
                                                 store_now(above + j, seal(value));
                                             }
                                         });
        });
    }

    // The weights of the phases whose number modulo the number of weighers is `turn`. They are
    // computed in parts, one per tick, starting as many ticks before their E as there are weighers.
    // The state at the start of a phase is read one phase ahead.
    FASTSEQ_FN void weigh(int turn) const {
        const Strip here = strip;
        const State penalty = p.scaled_penalty(b);
        const int width = p.width();
        State next_h = 0, next_v = 0, next_top = 0;
        States<DeviceWarp, Kind> h{0}, v{0};
        Held<DeviceWarp, State> top{{0}};
        const auto read_ahead = [&](int t) {
            if (!here.has_phase(t)) return;
            next_h = p.state(b, here.index, t)[lane];
            next_v = p.state(b, here.index, t)[kLanes + lane];
            const int j = t * kLanes + lane;
            next_top = here.index > 0 && j < width ? (p.border(p.h, b, here.index) - width)[j] : 0;
        };
        read_ahead((here.last_phase() - turn) / weighers * weighers + turn);
        walk([&](int t) {
            const int ahead = 1 + (t - 1 - turn + 4 * weighers) % weighers;  // of the phase's E
            const int phase = t - ahead, part = weighers - ahead;
            if (!here.has_phase(phase)) return;
            if (part == 0) {
                h.value = next_h;
                v.value = next_v;
                top.now.value = next_top;
                read_ahead(phase - weighers);
            }
            constexpr int steps = kLanes / weighers;
            weigh_steps<DeviceWarp, Kind, ring>(
                here, phase, part * steps, (part + 1) * steps, mem.costs, penalty, top, h, v,
                weights(phase));
        });
    }

    // Marks dy and dbias of block t + 2 as done, one barrier after the warps that wrote them. These
    // did not wait for the strip below if they had nothing to add. Then dbias of block t + 1.
    FASTSEQ_FN void hand_on() const {
        int* done = a.done + p.strip_at(b, strip.index);
        walk([&](int t) {
            const int block = t + 2, target = p.blocks() - block;
            if (lane == 0 && a.has_columns() && a.only_strip < 0 && strip.has_block(block)) {
                if (!begins_dy(strip, block)) wait_until(done + 1, target, p.patience);
                publish(done, target);
            }
            if (!strip.has_block(t + 1)) return;
            bias_block(a, strip, b, t + 1, ring_block<3, kEBlock>(mem.es, t + 1), lane);
        });
    }

    // Block t - weighers - 2 of the costs.
    FASTSEQ_FN void costs(int thread) const {
        const T scale = p.scale(b);
        walk([&](int t) {
            const int block = t - weighers - 2;
            if (!strip.has_block(block)) return;
            cost_block(p, strip, b, block, scale, ring_block<ring>(mem.costs, block), mem.parts,
                       centre_of<Kind>(mem), thread);
        });
    }

    // Block t + 1 of the gradients.
    FASTSEQ_FN void gradients(int thread) const {
        walk([&](int t) {
            if (!strip.has_block(t + 1)) return;
            int entry = b;
            forget(entry);  // addresses should not occupy registers between ticks
            gradient_block(a, strip, entry, t + 1, ring_block<3, kEBlock>(mem.es, t + 1),
                           centre_of<Kind>(mem), thread);
        });
    }
};

template <class Kind>
__global__ void __launch_bounds__(kBackwardThreads<Kind>, 1) backward_kernel(const Backward<Kind> a) {
    auto& mem = shared_memory<BackwardShared<Kind>>();
    const Turn turn = take_turn(a.tickets, a.only_strip, a.p.batch, mem.ticket);
    const Strip strip = a.p.strip(a.p.strips() - 1 - turn.strip, turn.b);
    fill_rest(a, strip, turn.b);
    if (strip.empty()) return;
    if (threadIdx.x == 0) mem.strip = strip;
    find_centre(a.p, strip, turn.b, centre_of<Kind>(mem));
    __syncthreads();
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const BackwardTasks<Kind> tasks{a, a.p, mem.strip, mem, turn.b, lane};
    if (warp == 0) {
        tasks.flux();
    } else if (warp <= kWeighers<Kind>) {
        tasks.weigh(warp - 1);
    } else if (threadIdx.x < kFirstCost<Kind>) {
        tasks.hand_on();
    } else if (threadIdx.x < kFirstCost<Kind> + kCostThreads) {
        tasks.costs(threadIdx.x - kFirstCost<Kind>);
    } else {
        tasks.gradients(threadIdx.x - kFirstCost<Kind> - kCostThreads);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
