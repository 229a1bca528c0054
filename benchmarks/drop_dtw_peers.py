"""Drop-DTW and OTAM as loops over cells in plain PyTorch, as in the public codes; autograd
differentiates them. The pairs of a batch run together.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 0.1
FAR = 9999999999.0  # the released code's infinity


def released(
    cost: Tensor,
    drop_cost: Tensor,
    gamma: float = GAMMA,
    softmin: str = "prob",
    contiguous: bool = True,
    exclusive: bool = True,
) -> Tensor:
    """(N,) of (N, K, S) and (N, S): the cell loop of Drop-DTW's released soft_dp.py, before its
    division by S, without its check that each cell is written once, and without the 1e-5 that it
    adds inside the logarithm of "logsumexp".
    """
    least = _softmin(gamma, softmin)
    num, k, m = cost.shape
    far, zero = cost.new_full((num,), FAR), cost.new_zeros(num)
    sums = drop_cost.cumsum(1)
    final = [[zero, *(sums[:, j] for j in range(m))]]  # D of rows 0 to K
    above = [far] * (m + 1)  # D+ of the row above; the released code has the drop costs in row 0
    for i in range(k):
        row, matched = [far], [far]
        for j in range(m):
            terms = [final[i][j], matched[j] if contiguous else row[j]]
            if not exclusive:
                terms.append(above[j + 1])
            matched.append(cost[:, i, j] + least(terms))
            row.append(least([row[j] + drop_cost[:, j], matched[-1]]))
        final.append(row)
        above = matched
    return final[-1][-1]


def otam_paper(cost: Tensor, gamma: float = GAMMA, softmin: str = "logsumexp") -> Tensor:
    """(N,) of (N, T, S): the paper's recursion with a column of zeros at either end, in which alone
    rows may be skipped.
    """
    least = _softmin(gamma, softmin)
    cost = F.pad(cost, (1, 1))
    num, n, m = cost.shape
    table: list[list[Tensor]] = []
    for i in range(n):
        row: list[Tensor] = []
        for j in range(m):
            terms = [table[i - 1][j - 1]] if i and j else []
            if j:
                terms.append(row[j - 1])
            if i and j in (0, m - 1):
                terms.append(table[i - 1][j])
            row.append(cost[:, i, j] + least(terms) if terms else cost.new_zeros(num))
        table.append(row)
    return table[-1][-1]


def otam_few_shot(cost: Tensor, gamma: float = GAMMA) -> Tensor:
    """(N,) of (N, T, S): the recursion of the public few-shot codes (OTAM_cum_dist), in which the
    first column of costs, too, may be descended, and the first added column is 0 in all rows.
    """
    least = _softmin(gamma, "logsumexp")
    cost = F.pad(cost, (1, 1))
    num, n, m = cost.shape
    zero = cost.new_zeros(num)
    row = [zero]
    for j in range(1, m):
        row.append(cost[:, 0, j] + row[j - 1])
    for i in range(1, n):
        above, row = row, [zero]
        for j in range(1, m):
            terms = [above[j - 1], row[j - 1]]
            if j in (1, m - 1):
                terms.append(above[j])
            row.append(cost[:, i, j] + least(terms))
    return row[-1]


def _softmin(gamma: float, kind: str) -> Callable[[list[Tensor]], Tensor]:
    def logsumexp(terms: list[Tensor]) -> Tensor:
        return -gamma * torch.logsumexp(torch.stack(terms) / -gamma, 0)

    def prob(terms: list[Tensor]) -> Tensor:
        values = torch.stack(terms)
        return (F.softmax(values / -gamma, 0) * values).sum(0)

    return {"logsumexp": logsumexp, "prob": prob}[kind]
