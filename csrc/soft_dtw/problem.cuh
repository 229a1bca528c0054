// One call: its inputs, its options, and where the tile borders that the forward keeps lie.
#pragma once

#include "tile.cuh"

namespace fastseq {
namespace soft_dtw {

template <class Kind>
struct Problem {
    using T = typename Kind::Number;
    using State = typename Kind::State;

    const T *x, *y;  // [batch, rows, channels], [batch, columns, channels]; Costs: null
    const T* cost;   // [batch, rows, columns]; Embeddings: null
    const T* bias;   // [batch, columns] or null: added to the squared distances of a column
    const long long *lengths_x, *lengths_y;  // [batch] or null: all real
    const double* gammas;                    // [batch] or null: gamma
    const long long* bands;                  // [batch] or null: band
    int batch, rows, columns, channels;
    int band;  // < 0: no band
    int begin_free, end_free;
    int patience;  // > 0: so many polls without an answer are an error
    double gamma, penalty;
    State* h;       // [batch, strips, width]: h of the last row of each strip; all bits set first
    State* states;  // [batch, strips, phases, 2, 32]: h and v before each phase; null: not kept

    // A free end needs an additional row.
    FASTSEQ_FN int strips() const { return (rows + end_free + kLanes - 1) / kLanes; }
    FASTSEQ_FN int blocks() const { return (columns + kLanes - 1) / kLanes; }
    FASTSEQ_FN int width() const { return blocks() * kLanes; }
    FASTSEQ_FN int phases() const { return blocks() + 1; }
    FASTSEQ_FN Strip strip(int index, int b) const {
        return make_strip(index, rows, columns, lengths_x ? lengths_x[b] : rows,
                          lengths_y ? lengths_y[b] : columns, bands ? bands[b] : band,
                          begin_free != 0, end_free != 0);
    }
    // The unit of costs in the kernels.
    FASTSEQ_FN T scale(int b) const {
        return static_cast<T>(Kind::Min::unit / (gammas ? gammas[b] : gamma));
    }
    FASTSEQ_FN State scaled_penalty(int b) const {
        return static_cast<State>(static_cast<T>(penalty) * scale(b));
    }

    FASTSEQ_FN long long strip_at(int b, int strip) const {
        return static_cast<long long>(b) * strips() + strip;
    }
    // One number per column along the border below a strip.
    template <class Border>
    FASTSEQ_FN Border* border(Border* borders, int b, int strip) const {
        return borders + strip_at(b, strip) * width();
    }
    FASTSEQ_FN State* state(int b, int strip, int t) const {
        return states + (strip_at(b, strip) * phases() + t) * (2 * kLanes);
    }
    FASTSEQ_FN const T* x_row(int b, int i) const {
        return x + (static_cast<long long>(b) * rows + i) * channels;
    }
    FASTSEQ_FN const T* y_row(int b, int j) const {
        return y + (static_cast<long long>(b) * columns + j) * channels;
    }
    FASTSEQ_FN long long column_at(int b, int j) const {
        return static_cast<long long>(b) * columns + j;
    }
    FASTSEQ_FN const T* cost_at(int b, int i, int j) const {
        return cost + (static_cast<long long>(b) * rows + i) * columns + j;
    }
};

}  // namespace soft_dtw
}  // namespace fastseq
