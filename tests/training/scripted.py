"""Trainings whose evaluations have given values, in this process or in child processes."""

import math
import os

import processes
from two_ranks import squares

import training.evaluation.curve


class Scripted:
    """Replaces StepEvaluation: the next of some values of one metric at each call."""

    def __init__(self, values, *, metric: str = "classification", split: str = "val") -> None:
        self.values, self.metric, self.split = iter(values), metric, split

    def __call__(self) -> dict:
        value = next(self.values)
        return {
            "split": self.split,
            "metrics": {self.metric: math.nan if value is None else value},
            "time_index": {self.metric: 0.5},
        }


def train_scripted(arguments: list[str]) -> int:
    """processes.train with the values of the environment variable VALUES as evaluations.

    Only rank 0 evaluates; elsewhere the evaluation fails.
    """
    values = [float(value) for value in os.environ["VALUES"].split()]
    here = values if os.environ["RANK"] == "0" else ()
    training.evaluation.curve.step_evaluation = lambda cfg, model: Scripted(here)
    return processes.train(squares, arguments)
