// The tile functions of csrc/soft_dtw on the host: strips from the top, tiles from the left, and
// back. test_cuda_host.py compiles this into a shared library and calls it.
#include <algorithm>
#include <limits>
#include <vector>

#include "soft_dtw/blocks.cuh"
#include "soft_dtw/problem.cuh"

using namespace fastseq::soft_dtw;

namespace {

template <class T>
using Reg = HostWarp::Reg<T>;

// Rings start as NaN: what the kernels find in shared memory is arbitrary too.
template <class T>
struct Ring {
    alignas(16) T cells[kRing * kBlock];
    Ring() {
        for (T& cell : cells) cell = std::numeric_limits<T>::quiet_NaN();
    }
};

template <class T>
void cost_block(const Problem<Costs<T>>& p, const Strip& strip, int b, int block, double* ring) {
    const int j0 = block * kLanes, rows = strip.n - strip.first_row, columns = strip.m - j0;
    for (int thread = 0; thread < kCostThreads; ++thread) {
        copy_costs(p.cost_at(b, strip.first_row, j0), p.columns, rows, columns, thread, p.scale,
                   ring_block(ring, block));
    }
}

template <class T>
void cost_block(const Problem<Embeddings<T>>& p, const Strip& strip, int b, int block, T* ring) {
    T* out = ring_block(ring, block);
    const int j0 = block * kLanes, rows = strip.n - strip.first_row, columns = strip.m - j0;
    static thread_local T xs[kLanes * kPitch], ys[kLanes * kPitch], sums[kCostThreads][kPerThread];
    for (auto& row : sums)
        for (T& sum : row) sum = 0;
    for (int d = 0; d < p.channels; d += kChunk) {
        for (int thread = 0; thread < kCostThreads; ++thread) {
            T moved[kPerThread];
            load_chunk(p.x_row(b, strip.first_row), rows, p.channels, d, thread, moved);
            store_chunk(xs, thread, moved);
            load_chunk(p.y_row(b, j0), columns, p.channels, d, thread, moved);
            store_chunk(ys, thread, moved);
        }
        for (int thread = 0; thread < kCostThreads; ++thread)
            add_distances(xs, ys, thread, sums[thread]);
    }
    for (int thread = 0; thread < kCostThreads; ++thread)
        store_distances(out, thread, sums[thread], p.scale);
}

template <class T>
void load_border(const T* border, int first, int width, T (&out)[kLanes], T otherwise) {
    for (int k = 0; k < kLanes; ++k) {
        const int j = first + k;
        out[k] = border && j >= 0 && j < width ? border[j] : otherwise;
    }
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
            Ring<State> costs;
            Reg<State> h{}, v{};
            Reg<double> sum{};
            for (int t = strip.first_phase(); t <= strip.last_phase(); ++t) {
                if (t >= strip.first_block() && t <= strip.last_block())
                    cost_block(p, strip, b, t, costs.cells);
                State top[kLanes];
                load_border(s ? p.border(p.h, b, s - 1) : nullptr, t * kLanes, p.width(), top,
                            State(0));
                for (int lane = 0; p.states && lane < kLanes; ++lane) {
                    p.state(b, s, t)[lane] = h[lane];
                    p.state(b, s, t)[kLanes + lane] = v[lane];
                }
                forward_phase<HostWarp, Kind>(strip, t, costs.cells, top, h, v, sum,
                                              p.border(p.h, b, s), p.width());
            }
            total = total + HostWarp::sum(sum);
            if (strip.is_last()) value[b] = Kind::value(total, p.scale);
        }
    }
}

template <class Kind, class T>
void block_gradients(const Problem<Kind>& p, const Strip& strip, int b, int block, T* es, T* dx,
                     T* dy, T* dcost) {
    const int i0 = strip.first_row, j0 = block * kLanes;
    const int rows = strip.n - i0, columns = strip.m - j0;
    for (int r = 0; Kind::given && r < kLanes && i0 + r < p.rows; ++r)
        for (int c = 0; c < kLanes && j0 + c < p.columns; ++c)
            dcost[p.cost_at(b, i0 + r, j0 + c) - p.cost] = es[r * kLanes + c];
    for (int d = 0; !Kind::given && d < p.channels; ++d) {
        for (int half = 0; half < kLanes && j0 + half < p.columns; half += kHalf) {
            T gy[kHalf];
            gradient_channel(es + half, p.x_row(b, i0) + d, rows, p.y_row(b, j0 + half) + d,
                             columns - half, p.channels, dx + (p.x_row(b, i0) - p.x) + d,
                             std::min(kLanes, p.rows - i0),
                             block == strip.last_block() && half == 0, gy);
            for (int c = 0; c < kHalf && half + c < columns; ++c)
                dy[p.y_row(b, j0 + half + c) - p.y + d] += gy[c];
        }
    }
}

// Gradients arrive as zeros and are added to.
template <class Kind, class T>
void backward(const Problem<Kind>& p, const T* grad, T* dx, T* dy, T* dcost) {
    using State = typename Kind::State;
    const T unknown = std::numeric_limits<T>::quiet_NaN();
    for (int b = 0; b < p.batch; ++b) {
        std::vector<T> below, above(p.width(), unknown);
        for (int s = p.strips() - 1; s >= 0; --s) {
            const Strip strip = p.strip(s, b);
            if (strip.empty()) continue;
            below.swap(above);
            above.assign(p.width(), unknown);
            Ring<State> costs;
            Ring<T> es;
            Flux<HostWarp, T> flux;
            flux.clear();
            if (strip.last_block() >= strip.first_block())
                cost_block(p, strip, b, strip.last_block(), costs.cells);
            for (int t = strip.last_phase(); t >= strip.first_phase(); --t) {
                if (t - 1 >= strip.first_block() && t - 1 < strip.last_block())
                    cost_block(p, strip, b, t - 1, costs.cells);
                State top[kLanes];
                T bottom[kLanes], weights[2 * kBlock];
                load_border(s ? p.border(p.h, b, s - 1) : nullptr, t * kLanes, p.width(), top,
                            State(0));
                Reg<State> h, v;
                for (int lane = 0; lane < kLanes; ++lane) {
                    h[lane] = p.state(b, s, t)[lane];
                    v[lane] = p.state(b, s, t)[kLanes + lane];
                }
                recompute_phase<HostWarp, Kind>(strip, t, costs.cells, top, h, v, weights);
                load_border(strip.is_last() ? nullptr : below.data(), t * kLanes - (kLanes - 1),
                            p.width(), bottom, T(0));
                flux_phase<HostWarp, Kind>(strip, t, weights, bottom,
                                           (Kind::given ? 1 : 2) * grad[b], flux, es.cells,
                                           above.data(), p.width());
                if (t >= strip.first_block() && t <= strip.last_block())
                    block_gradients(p, strip, b, t, ring_block(es.cells, t), dx, dy, dcost);
            }
        }
    }
}

}  // namespace

#define FASTSEQ_CALL(K, T)                                                                    \
    const T *x, const T *y, const T *cost, const long long *lx, const long long *ly, int batch, \
        int rows, int columns, int channels, int band, double gamma, K::State *h, K::State *states
#define FASTSEQ_PROBLEM(T)                                                                    \
    {x, y, cost, lx, ly, batch, rows, columns, channels, band,                                \
     static_cast<T>(1.4426950408889634 / gamma), h, states}
#define FASTSEQ_EXPORT(K, T, suffix)                                                          \
    extern "C" void forward_##suffix(FASTSEQ_CALL(K, T), T* value) {                          \
        forward<K>(FASTSEQ_PROBLEM(T), value);                                                \
    }                                                                                         \
    extern "C" void backward_##suffix(FASTSEQ_CALL(K, T), const T* grad, T* dx, T* dy,        \
                                      T* dcost) {                                             \
        backward<K>(FASTSEQ_PROBLEM(T), grad, dx, dy, dcost);                                 \
    }

FASTSEQ_EXPORT(Embeddings<float>, float, Embeddings_f32)
FASTSEQ_EXPORT(Embeddings<double>, double, Embeddings_f64)
FASTSEQ_EXPORT(Costs<float>, float, Costs_f32)
FASTSEQ_EXPORT(Costs<double>, double, Costs_f64)
