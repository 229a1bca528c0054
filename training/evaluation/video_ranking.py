"""Retrieval of whole videos (VCLR, section 4.6): the order of the candidates, and recall."""

from __future__ import annotations

import numpy as np

KS = (1, 5, 10, 20, 50)  # VCLR, Table 4


def ranked(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of each query by cosine similarity, the most similar one first.

    Equal similarities keep the order of ``candidates``. A row of zeros has similarity 0.

    Args:
        queries: features (Q, E), floating point.
        candidates: features (C, E).

    Returns:
        int64 (Q, C), rows of ``candidates``, and their similarities (Q, C).
    """
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (queries, candidates)
    ]
    similarity = unit[0] @ unit[1].T
    order = np.argsort(-similarity, axis=1, kind="stable")
    return order, np.take_along_axis(similarity, order, axis=1)


def recalls(hits: np.ndarray) -> dict[str, float]:
    """``recall_at_K`` for each of KS: the share of queries with a hit among the K nearest.

    hits: bool (Q, C), whether the k-th nearest candidate has the query's action. With fewer than K
        candidates the value is NaN.
    """
    return {
        f"recall_at_{k}": float(hits[:, :k].any(1).mean()) if k <= hits.shape[1] else float("nan")
        for k in KS
    }
