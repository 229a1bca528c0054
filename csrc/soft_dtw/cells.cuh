// One cell of the recursion, for the two kinds of call: costs from embeddings, and given costs. A
// kind defines which numbers pass from cell to cell, and how the value follows from them: h goes to
// the cell below, v to the cell on the right; p_diag and p_up are weights of two predecessors, and
// the third has the rest. Min is the soft minimum (softmin.cuh).
#pragma once

#include "softmin.cuh"

namespace fastseq {
namespace soft_dtw {

// What one lane needs to know about its row. Cells first <= j <= last exist.
struct Row {
    int i, first, last;
    int up_end;   // cells left of it have a predecessor above
    bool opens;   // a path may begin in any of its cells: row 0 where the begin is free
    bool closes;  // below the last frame of x: costs are 0 and paths run right to their end

    // Whether there is a step from the cell at (i - 1, j - 1); for a path's first cell, the step
    // that begins it.
    FASTSEQ_FN bool has_diagonal(int j) const { return i == 0 ? j == 0 || opens : j > 0 && !closes; }
};

// A recursion over differences of neighbours, which are as small as one cost for any T:
// h = R_ij - R_i,j-1, v = R_ij - R_i-1,j.
template <class T, class M = LogSumExp>
struct Embeddings {
    using Number = T;
    using State = T;
    using Min = M;
    static constexpr bool given = false;

    struct Cell {
        T h, v;
        T through;  // R_ij - R_i-1,j-1
        T p_diag, p_up;
    };

    // `above` is h of the cell above, `left` v of the cell to the left; both may be anything if
    // that cell does not exist. `penalty` is added to steps that are not diagonal. The v passed on
    // is 0 on row 0, the h in column 0, which makes h = v = u + penalty there; with a free begin v
    // is R itself on row 0. `inner`: all three neighbours exist.
    template <bool inner>
    static FASTSEQ_FN Cell cell(const Row& row, int j, T u, T above, T, T left, T penalty) {
        const T absent = T(1e30);
        if (!inner && row.closes) u = penalty = T(0);
        const T x = inner || j < row.up_end ? above + penalty : absent;
        const T y = inner || j > row.first ? left + penalty : absent;
        const T z = inner || row.has_diagonal(j) ? T(0) : absent;
        const T mn = lowest(x, lowest(z, y));  // x comes last
        const T to_x = mn - x, to_y = mn - y;
        const auto least = Min::of(mn - z, to_x, to_y);
        const T rest = u + least.soft, through = rest + mn, stepped = rest + penalty;
        const T up = Min::zeros && least.left == T(0) ? T(1) - least.diag : least.up;
        Cell out{stepped + to_y, stepped + to_x, through, least.diag, up};
        if (!inner && j == 0) out.h = T(0);
        if (!inner && row.i == 0) out.v = row.opens ? through : T(0);
        return out;
    }

    // The value is a sum along the main diagonal, then along the last row or column.
    static FASTSEQ_FN T value_term(int n, int m, const Row& row, int j, const Cell& cell) {
        if (row.i == j) return cell.through;
        if (j > row.i) return row.i == n - 1 ? cell.h : T(0);
        return j == m - 1 ? cell.v : T(0);
    }
    // The same for a phase that meets neither the last row nor the last column; each lane has at
    // most one cell of the diagonal.
    static FASTSEQ_FN void inner_term(const Row& row, int j, const Cell& cell, T& term) {
        term = row.i == j ? cell.through : term;
    }

    static FASTSEQ_FN T value(double total, T scale) { return static_cast<T>(total / scale); }
};

// A recursion over R itself, in double: with costs of +inf, differences between neighbours cannot
// compare two ways around them. h = R_ij, v = R_i-1,j. Weights come from differences of R and stay
// in T.
template <class T, class M = LogSumExp>
struct Costs {
    using Number = T;
    using State = double;
    using Min = M;
    static constexpr bool given = true;
    static constexpr double no_path = 1e300;  // R of a cell that no path reaches
    static constexpr T gone = T(8);           // p_diag of such a cell; weights are less than 2

    struct Cell {
        double h, v;
        T p_diag, p_up;
    };

    // `above` is R of the cell above, `before` of the one to the left, `above_before` of the one
    // between them.
    template <bool inner>
    static FASTSEQ_FN Cell cell(const Row& row, int j, double u, double above, double before,
                                double above_before, double penalty) {
        if (!inner && row.closes) u = penalty = 0;
        const double x = inner || j < row.up_end ? above + penalty : no_path;
        const double y = inner || j > row.first ? before + penalty : no_path;
        const double diagonal = row.i == 0 ? 0.0 : above_before;
        const double z = inner || row.has_diagonal(j) ? diagonal : no_path;
        const double least = lowest(x, lowest(z, y));
        const auto min = Min::of(static_cast<T>(least - z), static_cast<T>(least - x),
                                 static_cast<T>(least - y));
        // `lowest` passes over NaN, but the soft minimum does not: a cell behind NaN is NaN.
        if (u >= no_path || (least >= no_path && min.number)) return {no_path, above, gone, T(0)};
        // The rest of 1 is exactly 0 if the left neighbour has no share, not a rounding error.
        const T p_up = min.left == T(0) ? T(1) - min.diag : min.up;
        return {u + (least + static_cast<double>(min.soft)), above, min.diag, p_up};
    }

    static FASTSEQ_FN double value_term(int n, int m, const Row& row, int j, const Cell& cell) {
        return row.i == n - 1 && j == m - 1 ? cell.h : 0.0;
    }

    static FASTSEQ_FN void inner_term(const Row&, int, const Cell&, double&) {}

    static FASTSEQ_FN T value(double total, T scale) {
        const double all = total < no_path ? total / scale : total * no_path;  // +inf; keeps NaN
        return static_cast<T>(all);
    }
};

}  // namespace soft_dtw
}  // namespace fastseq
