// The tile functions of csrc/soft_dtw on the host: strips from the top, tiles from the left, and
// back. test_cuda_host.py compiles this into a shared library and calls it.
#include <algorithm>
#include <limits>
#include <vector>

#include "soft_dtw/gradients.cuh"
#include "soft_dtw/strips.cuh"

using namespace fastseq::soft_dtw;

namespace {

template <class T>
using Reg = HostWarp::Reg<T>;

// Shared memory starts as NaN, since its content is arbitrary for the kernels too.
template <class T, int count>
struct Memory {
    alignas(16) T at[count];
    Memory() { std::fill(at, at + count, std::numeric_limits<T>::quiet_NaN()); }
};

template <class Kind>
struct Centre {
    alignas(16) typename Kind::Number at[kCentred<typename Kind::Number>];
};

template <class T, class M>
void find_centre(const Problem<Costs<T, M>>&, const Strip&, int, Centre<Costs<T, M>>&) {}
template <class T, class M>
void find_centre(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b,
                 Centre<Embeddings<T, M>>& centre) {
    mean_frame(rows_of<false>(p, strip, b, centre.at), centre.at, 0, 1);
}

template <class T, class M>
void cost_block(const Problem<Costs<T, M>>& p, const Strip& strip, int b, int block,
                const Centre<Costs<T, M>>&, double* out) {
    const int i = strip.first_row, j = block * kLanes;
    for (int thread = 0; thread < kCostThreads; ++thread) {
        copy_costs(p.cost_at(b, i, j), p.columns, strip.real - i, strip.m - j, thread, p.scale(b),
                   out);
    }
}

template <class T, class M>
void cost_block(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b, int block,
                const Centre<Embeddings<T, M>>& centre, T* out) {
    const Bias<T, M> bias{p, strip, b, block, p.scale(b)};
    const auto x = rows_of<false>(p, strip, b, centre.at);
    const auto y = columns_of<false>(p, strip, b, block, centre.at);
    CostParts<T> parts;
    bool close = false;
    for (int side = 0; side < 2; ++side) {
        Distances<HostWarp, T> first, second;
        distances<HostWarp>(x, y, side, 0, first);
        distances<HostWarp>(x, y, side, 1, second);
        leave_part<HostWarp>(second, side, parts);
        close |= write_distances<HostWarp>(first, side, parts, p.scale(b), bias, out);
    }
    for (int thread = 0; close && thread < kCostThreads; ++thread) {
        write_differences(x, y, thread, p.scale(b), bias, out);
    }
}

// 32 columns of a border, 0 where there are none.
template <class T>
Held<HostWarp, T> held(const T* border, int first, int width) {
    Held<HostWarp, T> out;
    for (int k = 0; k < kLanes; ++k) {
        const int j = first + k;
        out.now[k] = border && j >= 0 && j < width ? border[j] : T(0);
    }
    return out;
}

template <class Kind>
void forward(const Problem<Kind>& p, typename Kind::Number* value) {
    using State = typename Kind::State;
    for (int b = 0; b < p.batch; ++b) {
        value[b] = 0;
        double total = 0;
        for (int s = 0; s < p.strips(); ++s) {
            const Strip strip = p.strip(s, b);
            if (strip.empty()) continue;
            Memory<State, 3 * kBlock> costs;
            Centre<Kind> centre;
            find_centre(p, strip, b, centre);
            Reg<State> h{}, v{};
            Reg<double> sum{};
            State* below = p.border(p.h, b, s);
            for (int t = strip.first_phase(); t <= strip.last_phase(); ++t) {
                if (strip.has_block(t)) {
                    cost_block(p, strip, b, t, centre, ring_block<3>(costs.at, t));
                }
                for (int lane = 0; p.states && lane < kLanes; ++lane) {
                    p.state(b, s, t)[lane] = h[lane];
                    p.state(b, s, t)[kLanes + lane] = v[lane];
                }
                auto top = held(s ? below - p.width() : nullptr, t * kLanes, p.width());
                forward_phase<HostWarp, Kind, 3>(strip, t, costs.at, p.scaled_penalty(b), top, h, v,
                                                 sum, [&](int j, State value, auto) {
                                                     if (j >= 0 && j < p.width()) below[j] = value;
                                                 });
            }
            total = total + HostWarp::sum<1, kLanes>(sum)[0];
            if (strip.is_last()) value[b] = Kind::value(total, p.scale(b));
        }
    }
}

template <class T, class M>
void block_gradients(const Problem<Costs<T, M>>& p, const Strip& strip, int b, int block,
                     const T* es, const Centre<Costs<T, M>>&, T*, T*, T* dcost, T*) {
    const int i = strip.first_row, j = block * kLanes;
    for (int r = 0; r < kLanes && i + r < p.rows; ++r)
        for (int c = 0; c < kLanes && j + c < p.columns; ++c)
            dcost[p.cost_at(b, i + r, j + c) - p.cost] = es[r * kEPitch + c];
}

template <class T, class M>
void block_gradients(const Problem<Embeddings<T, M>>& p, const Strip& strip, int b, int block,
                     const T* es, const Centre<Embeddings<T, M>>& centre, T* dx, T* dy, T*,
                     T* dbias) {
    const int i = strip.first_row, j = block * kLanes;
    if (!any_flux<HostWarp>(es)) return;
    const auto sums = column_sums<HostWarp>(es);
    for (int k = 0; dbias && k < kLanes && j + k < p.columns; ++k) {
        dbias[p.column_at(b, j + k)] += sums[k] / 2;
    }
    const auto x = rows_of<false>(p, strip, b, centre.at);
    const auto y = columns_of<false>(p, strip, b, block, centre.at);
    for (int chunk = 0; 32 * chunk < p.channels; ++chunk) {
        gradients<HostWarp, false>(es, x, y, chunk, dx + (p.x_row(b, i) - p.x),
                                   p.rows - i, false, [] {});
        gradients<HostWarp, true>(es, y, x, chunk, dy + (p.y_row(b, j) - p.y),
                                  p.columns - j, false, [] {});
    }
}

// Gradients are passed as zeros, and the kernels add to them.
template <class Kind, class T>
void backward(const Problem<Kind>& p, const T* grad, T* dx, T* dy, T* dcost, T* dbias) {
    using State = typename Kind::State;
    const T unknown = std::numeric_limits<T>::quiet_NaN();
    for (int b = 0; b < p.batch; ++b) {
        std::vector<T> below, above(p.width(), unknown);
        for (int s = p.strips() - 1; s >= 0; --s) {
            const Strip strip = p.strip(s, b);
            if (strip.empty()) continue;
            below.swap(above);
            above.assign(p.width(), unknown);
            Memory<State, 3 * kBlock> costs;
            Memory<T, 3 * kEBlock> es;
            Centre<Kind> centre;
            find_centre(p, strip, b, centre);
            const auto add_costs = [&](int block) {
                if (strip.has_block(block)) {
                    cost_block(p, strip, b, block, centre, ring_block<3>(costs.at, block));
                }
            };
            Flux<HostWarp, T> flux;
            flux.clear();
            add_costs(strip.last_block());
            for (int t = strip.last_phase(); t >= strip.first_phase(); --t) {
                add_costs(t - 1);
                T weights[2 * kBlock];
                Reg<State> h, v;
                for (int lane = 0; lane < kLanes; ++lane) {
                    h[lane] = p.state(b, s, t)[lane];
                    v[lane] = p.state(b, s, t)[kLanes + lane];
                }
                auto top = held(s ? p.border(p.h, b, s - 1) : nullptr, t * kLanes, p.width());
                for (int begin = 0; begin < kLanes; begin += kLanes / 2) {
                    weigh_steps<HostWarp, Kind, 3>(strip, t, begin, begin + kLanes / 2, costs.at,
                                                   p.scaled_penalty(b), top, h, v, weights);
                }
                auto bottom = held(strip.is_last() ? nullptr : below.data(),
                                   (t - 1) * kLanes + 1, p.width());
                flux_phase<HostWarp, Kind>(strip, t, weights, bottom,
                                           (Kind::given ? 1 : 2) * grad[b], flux, es.at,
                                           [&](int j, T value, auto) {
                                               if (j < p.width()) above[j] = value;
                                           });
                if (strip.has_block(t)) {
                    block_gradients(p, strip, b, t, ring_block<3, kEBlock>(es.at, t), centre, dx, dy,
                                    dcost, dbias);
                }
            }
        }
    }
}

}  // namespace

#define FASTSEQ_EXPORT(K, T, suffix)                                                           \
    extern "C" void forward_##suffix(const Problem<K>* p, T* value) { forward<K>(*p, value); } \
    extern "C" void backward_##suffix(const Problem<K>* p, const T* grad, T* dx, T* dy,        \
                                      T* dcost, T* dbias) {                                    \
        backward<K>(*p, grad, dx, dy, dcost, dbias);                                           \
    }

#include "kinds.h"
