"""The metrics of CARL's evaluation protocol, and the alignment error in phases.

Every function accepts the labelled frames of the videos of one action (:class:`LabelledVideo`) and
returns a :class:`Score`: the value, which is NaN if undefined, and the number of things left out.
:mod:`training.evaluation.scores` averages over actions. References: "Frame-wise Action
Representations for Long Videos via Sequence Contrastive Learning" (CARL), section 4.1, and its
released evaluation code.
"""

from training.evaluation.classifiers import classification, few_shot, progression
from training.evaluation.labelled import (
    LabelledVideo,
    Score,
    labelled_video,
    mean_of_defined,
    phase_position,
)
from training.evaluation.neighbours import (
    FEWER_CANDIDATES,
    PAIR_METRICS,
    alignment_error,
    average_precision_at_k,
    average_precisions_at,
    distances,
    kendalls_tau,
    pair_scores,
    precision_at_k,
    precisions_at,
)

__all__ = [
    "FEWER_CANDIDATES",
    "PAIR_METRICS",
    "LabelledVideo",
    "Score",
    "alignment_error",
    "average_precision_at_k",
    "average_precisions_at",
    "classification",
    "distances",
    "few_shot",
    "kendalls_tau",
    "labelled_video",
    "mean_of_defined",
    "pair_scores",
    "phase_position",
    "precision_at_k",
    "precisions_at",
    "progression",
]
