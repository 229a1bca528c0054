// One cell of the recursion, for the two kinds of call: costs from embeddings, and costs that are
// given. A kind says which numbers pass from cell to cell, and how the value comes of them: h goes to
// the cell below, v to the cell on the right; p_diag and p_up are weights of two predecessors, of
// which the third has the rest.
#pragma once

#include "warp.cuh"

namespace fastseq {
namespace soft_dtw {

// What one lane needs to know of its row. Cells first <= j <= last exist.
struct Row {
    int i, first, last;
    int up_end;  // cells left of it have a predecessor above
};

// A recursion over the differences of neighbours, as small as one cost whatever T:
// h = R_ij - R_i,j-1, v = R_ij - R_i-1,j.
template <class T>
struct Embeddings {
    using Number = T;
    using State = T;
    static constexpr bool given = false;

    struct Cell {
        T h, v;
        T through;  // R_ij - R_i-1,j-1
        T p_diag, p_up;
    };

    // `above` is h of the cell above, `left` v of the cell to the left; both may be anything when
    // that cell does not exist. On row 0 the v handed on is 0, in column 0 the h is, which makes
    // h = u and v = u there.
    static FASTSEQ_FN Cell cell(const Row& row, int j, T u, T above, T, T left) {
        const T absent = T(1e30);
        const T x = j < row.up_end ? above : absent;
        const T y = j > row.first ? left : absent;
        const T mn = lowest(T(0), lowest(x, y));
        const T to_x = mn - x, to_y = mn - y;
        const T e_diag = (row.i > 0) == (j > 0) ? power2(mn) : T(0);
        const T e_up = power2(to_x), e_left = power2(to_y);
        const T s = e_diag + (e_up + e_left);
        const T rest = u - log2_of(s);
        const T r = reciprocal(s);
        return {j == 0 ? T(0) : rest + to_y, row.i == 0 ? T(0) : rest + to_x, rest + mn, e_diag * r,
                e_up * r};
    }

    // The value is a sum along the main diagonal, then along the last row or column.
    static FASTSEQ_FN T value_term(int n, int m, const Row& row, int j, const Cell& cell) {
        if (row.i == j) return cell.through;
        if (j > row.i) return row.i == n - 1 ? cell.h : T(0);
        return j == m - 1 ? cell.v : T(0);
    }

    static FASTSEQ_FN T value(double total, T scale) { return static_cast<T>(total / scale); }
};

// A recursion over R itself, in double: where costs are +inf, differences of neighbours do not say
// how two ways around them compare. h = R_ij, v = R_i-1,j. Weights come from differences of R and
// stay T.
template <class T>
struct Costs {
    using Number = T;
    using State = double;
    static constexpr bool given = true;
    static constexpr double no_path = 1e300;  // R of a cell that no path leads to
    static constexpr T gone = T(-1);          // p_diag of such a cell

    struct Cell {
        double h, v;
        T p_diag, p_up;
    };

    // `above` is R of the cell above, `before` of the one to the left, `above_before` of the one
    // between them.
    static FASTSEQ_FN Cell cell(const Row& row, int j, double u, double above, double before,
                                double above_before) {
        const double x = j < row.up_end ? above : no_path;
        const double y = j > row.first ? before : no_path;
        const double diagonal = row.i > 0 && j > 0 ? above_before : no_path;
        const double z = row.i == 0 && j == 0 ? 0.0 : diagonal;
        const double least = lowest(z, lowest(x, y));
        const T e_diag = power2(static_cast<T>(least - z));
        const T e_up = power2(static_cast<T>(least - x));
        const T e_left = power2(static_cast<T>(least - y));
        const T s = e_diag + (e_up + e_left);
        // `lowest` passes over NaN, but s does not: a cell behind NaN is NaN.
        if (u >= no_path || (least >= no_path && s == s)) return {no_path, above, gone, T(0)};
        const T r = reciprocal(s);
        const T p_diag = e_diag * r;
        // What is left of 1 is exactly 0 when the left neighbour has no share, not a rounding error.
        const T p_up = e_left == T(0) ? T(1) - p_diag : e_up * r;
        return {u + (least - static_cast<double>(log2_of(s))), above, p_diag, p_up};
    }

    static FASTSEQ_FN double value_term(int n, int m, const Row& row, int j, const Cell& cell) {
        return row.i == n - 1 && j == m - 1 ? cell.h : 0.0;
    }

    static FASTSEQ_FN T value(double total, T scale) {
        const double all = total < no_path ? total / scale : total * no_path;  // +inf; keeps NaN
        return static_cast<T>(all);
    }
};

}  // namespace soft_dtw
}  // namespace fastseq
