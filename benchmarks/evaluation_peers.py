"""The metrics over pairs and nearest frames as plain loops with scipy and one DTW path per pair."""

import warnings

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau

from fastseq.ops.soft_dtw import dtw_path_from_cost
from training.evaluation.alignment import match_frames


def ordered_pairs(videos, stride=1):
    """(query, other, distances of every stride-th frame) of all ordered pairs."""
    for i, query in enumerate(videos):
        for other in videos[:i]:
            between = cdist(query.embeddings[::stride], other.embeddings[::stride], "sqeuclidean")
            yield query, other, between
            yield other, query, between.T


def taus(videos, stride):
    found = []
    for *_, distances in ordered_pairs(videos, stride):
        nearest = distances.argmin(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(kendalltau(np.arange(len(nearest)), nearest).statistic)
    return np.array(found)


def alignment_errors(videos, method):
    found = []
    for query, other, distances in ordered_pairs(placed(videos)):
        if method == "nearest":
            gaps = np.abs(other.position[distances.argmin(axis=1)] - query.position)
        else:
            i, j = dtw_path_from_cost(distances)[0].numpy().T
            per_cell = np.abs(other.position[j] - query.position[i])
            gaps = np.bincount(i, per_cell) / np.bincount(i)
        found.append(gaps.mean())
    return np.array(found)


def placed(videos):
    return [video for video in videos if video.position is not None]


def events(video):
    phases, rows = np.unique(video.phases, return_index=True)
    return {p: r for p, r in zip(phases.tolist(), rows.tolist(), strict=True) if p and r}


def event_errors(videos):
    """(frames, seconds) of "event_error" and "event_error_dtw", and how many only one video has."""
    errors = {"event_error": ([], []), "event_error_dtw": ([], [])}
    alone = 0
    for query, other, distances in ordered_pairs(placed(videos)):
        there, wanted = events(query), events(other)
        shared = sorted(there.keys() & wanted.keys())
        alone += len(there.keys() ^ wanted.keys())
        if not shared:
            continue
        rows, true = [there[event] for event in shared], [wanted[event] for event in shared]
        path, _ = dtw_path_from_cost(distances)
        matched = {
            "event_error": distances[rows].argmin(axis=1),
            "event_error_dtw": match_frames(*path.numpy().T, len(distances))[rows],
        }
        for key, match in matched.items():
            for values, found in zip((other.frames, other.times), errors[key], strict=True):
                found.extend(np.abs(values[match] - values[true]).tolist())
    return errors, alone


def nearest_hits(videos, stride, k, views=None):
    """For each query video whether the j-th nearest frame has the query's phase."""
    for index, query in enumerate(videos):
        others = [
            video
            for position, video in enumerate(videos)
            if position != index and (views is None or video.view == views[1])
        ]
        if not others or (views is not None and query.view != views[0]):
            continue
        x = np.concatenate([video.embeddings[::stride] for video in others])
        y = np.concatenate([video.phases[::stride] for video in others])
        distances = cdist(query.embeddings[::stride], x, "sqeuclidean")
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
        yield y[nearest] == query.phases[::stride, None]


def average_precisions(hits):
    at_place = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return (at_place * hits).sum(1) / np.maximum(hits.sum(1), 1)
