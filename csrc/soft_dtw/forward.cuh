// The forward kernel. README.md explains why it is right.
#pragma once

#include "strips.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kForwardThreads = kLanes + kCostThreads;
constexpr int kForwardRing = 3;  // blocks of costs: a phase uses two while one is computed

template <class Kind>
struct Forward {
    Problem<Kind> p;
    typename Kind::Number* value;  // [batch]
    double* totals;  // [batch, strips]: the value's sum down to each strip; all bits set first
    int* tickets;    // -1 first
    int only_strip;
};

template <class Kind>
struct alignas(16) ForwardShared {
    typename Kind::State costs[kForwardRing * kBlock];
    typename PartsOf<Kind>::Type parts;
    int ticket;
    Strip strip;
};

// The tasks of the forward. Both go through the same phases t and meet after each.
template <class Kind>
struct ForwardTasks {
    using T = typename Kind::Number;
    using State = typename Kind::State;

    const Forward<Kind>& a;
    const Problem<Kind>& p;
    const Strip& strip;
    ForwardShared<Kind>& mem;
    int b;

    template <class Step>
    FASTSEQ_FN void walk(const Step& step) const {
        const int first = strip.first_phase(), last = strip.last_phase();
        FASTSEQ_UNROLL(1)
        for (int t = first - 1; t <= last; ++t) {
            step(t);
            __syncthreads();
        }
    }

    // Phase t of the recursion.
    FASTSEQ_FN void recursion() const {
        const Strip here = strip, over = here.neighbour(-1);
        const int lane = threadIdx.x % kLanes, s = here.index, width = p.width();
        const T scale = p.scale(b);
        const State penalty = p.scaled_penalty(b);
        State* below = p.border(p.h, b, s);
        // The last lane of the strip above wrote the columns of its phases.
        Feed<State, 1, kSteps> above{below - width, 0, 0, p.patience, 0, {State(0)}, State(0)};
        if (s > 0) {
            above.begin = larger(0, kLanes * (over.first_phase() - 1) + 1);
            above.end = lesser(width, kLanes * over.last_phase() + 1);
        }
        above.ask(kLanes * here.first_phase(), 0);
        States<DeviceWarp, Kind> h{0}, v{0};
        DeviceWarp::Reg<double> sum{0.0};
        walk([&](int t) {
            if (!here.has_phase(t)) return;
            if (p.states) {
                p.state(b, s, t)[lane] = h.value;
                p.state(b, s, t)[kLanes + lane] = v.value;
            }
            above.first = kLanes * t;
            forward_phase<DeviceWarp, Kind, kForwardRing>(
                here, t, mem.costs, penalty, above, h, v, sum, [&](int j, State value, auto inner) {
                    if (inner.value || (j >= 0 && j < width)) store_now(below + j, seal(value));
                });
        });
        const double own = DeviceWarp::sum<1, kLanes>(sum).value;
        if (lane > 0) return;
        double* total = a.totals + p.strip_at(b, s);
        const double all = (s > 0 ? wait_for(total - 1, p.patience) : 0.0) + own;
        store_now(total, seal(all));
        if (here.is_last()) a.value[b] = Kind::value(all, scale);
    }

    // Block t + 1 of the costs.
    FASTSEQ_FN void costs(int thread) const {
        const T scale = p.scale(b);
        walk([&](int t) {
            if (!strip.has_block(t + 1)) return;
            cost_block(p, strip, b, t + 1, scale, ring_block<kForwardRing>(mem.costs, t + 1),
                       mem.parts, centre_of<Kind>(mem), thread);
        });
    }
};

template <class Kind>
__global__ void __launch_bounds__(kForwardThreads, 2) forward_kernel(const Forward<Kind> a) {
    auto& mem = shared_memory<ForwardShared<Kind>>();
    const Turn turn = take_turn(a.tickets, a.only_strip, a.p.batch, mem.ticket);
    const Strip strip = a.p.strip(turn.strip, turn.b);
    if (strip.empty()) {
        if (turn.strip == 0 && threadIdx.x == 0) a.value[turn.b] = 0;
        return;
    }
    if (threadIdx.x == 0) mem.strip = strip;
    find_centre(a.p, strip, turn.b, centre_of<Kind>(mem));
    __syncthreads();
    const ForwardTasks<Kind> tasks{a, a.p, mem.strip, mem, turn.b};
    if (threadIdx.x < kLanes) {
        tasks.recursion();
    } else {
        tasks.costs(threadIdx.x - kLanes);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
