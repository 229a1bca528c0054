// The forward kernel. README.md says why it is right.
#pragma once

#include "strips.cuh"

namespace fastseq {
namespace soft_dtw {

constexpr int kForwardThreads = 2 * kLanes + kCostThreads;

template <class Kind>
struct Forward {
    Problem<Kind> p;
    typename Kind::Number* value;  // [batch]
    double* totals;   // [batch, strips]: the value's sum down to each strip
    int* sync;        // 1 + batch * strips
    int only_strip;
};

template <class Kind>
struct ForwardShared {
    typename Kind::State costs[kRing * kBlock];
    typename Kind::State top[2][kLanes];
    CostBuffers<Kind> buffers;
    int ticket;
};

template <class Kind>
__global__ void __launch_bounds__(kForwardThreads, sizeof(typename Kind::Number) == 4 ? 3 : 2)
    forward_kernel(const Forward<Kind> a) {
    auto& mem = shared_memory<ForwardShared<Kind>>();
    const Problem<Kind>& p = a.p;
    const Turn turn = take_turn(a.sync, a.only_strip, p.batch, mem.ticket);
    const int b = turn.b, s = turn.strip;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const Strip strip = p.strip(s, b);
    if (strip.empty()) {
        if (s == 0 && threadIdx.x == 0) a.value[b] = 0;
        return;
    }
    // A flag counts the phases that are over, from phase 0 on.
    int* p_done = a.only_strip < 0 ? a.sync + 1 + p.strip_at(b, s) : nullptr;
    const int* p_above = p_done && s > 0 ? p_done - 1 : nullptr;
    const int first = strip.first_phase(), last = strip.last_phase();
    const int above_phases = strip.neighbour(-1).last_phase() + 1;

    States<DeviceWarp, Kind> h{0}, v{0};
    DeviceWarp::Reg<double> sum{0.0};
    for (int t = first - 1; t <= last; ++t) {
        if (warp == 0) {
            if (t >= first) {
                if (p.states) {
                    p.state(b, s, t)[lane] = h[lane];
                    p.state(b, s, t)[kLanes + lane] = v[lane];
                }
                forward_phase<DeviceWarp, Kind>(strip, t, mem.costs, mem.top[t % 2], h, v, sum,
                                                p.border(p.h, b, s), p.width());
                const double strip_sum = t == last ? DeviceWarp::sum(sum) : 0.0;
                // The lane that wrote the border also writes the sum and the flag.
                if (lane == kLanes - 1) {
                    if (t == last) {
                        wait_for(p_above, above_phases);
                        const double* p_total = a.totals + p.strip_at(b, s) - 1;
                        const double total = (s > 0 ? __ldcg(p_total) : 0.0) + strip_sum;
                        a.totals[p.strip_at(b, s)] = total;
                        if (strip.is_last()) a.value[b] = Kind::value(total, p.scale);
                    }
                    publish(p_done, t + 1);
                }
            }
        } else if (warp == 1) {
            // The columns of phase t + 1 are those that the strip above ends in its phase t + 2.
            if (t < last) {
                wait_for(p_above, lesser(t + 3, above_phases));
                mem.top[(t + 1) % 2][lane] = load_top(p, strip, b, t + 1, lane);
            }
        } else if (t + 1 >= strip.first_block() && t + 1 <= strip.last_block()) {
            cost_block(p, strip, b, t + 1, mem.costs, mem.buffers, threadIdx.x - 2 * kLanes);
        }
        __syncthreads();
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
