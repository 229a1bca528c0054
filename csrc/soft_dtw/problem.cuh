// One call: its inputs, its options, and where the borders of the tiles lie that the forward keeps.
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
    const long long *lengths_x, *lengths_y;  // [batch] or null: all real
    int batch, rows, columns, channels;
    int band;       // < 0: none
    T scale;        // log2(e) / gamma: costs are worked on in these units
    State* h;       // [batch, strips, width]: h of the last row of each strip
    State* states;  // [batch, strips, phases, 2, 32]: h and v before each phase; null: not kept

    FASTSEQ_FN int strips() const { return (rows + kLanes - 1) / kLanes; }
    FASTSEQ_FN int blocks() const { return (columns + kLanes - 1) / kLanes; }
    FASTSEQ_FN int width() const { return blocks() * kLanes; }
    FASTSEQ_FN int phases() const { return blocks() + 1; }
    FASTSEQ_FN Strip strip(int index, int b) const {
        return make_strip(index, b, rows, columns, lengths_x, lengths_y, band);
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
    FASTSEQ_FN const T* cost_at(int b, int i, int j) const {
        return cost + (static_cast<long long>(b) * rows + i) * columns + j;
    }
};

}  // namespace soft_dtw
}  // namespace fastseq
