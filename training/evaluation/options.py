"""The choices of an evaluation of frame embeddings, and the arguments of commands that set them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.protocols import METRICS, PROTOCOLS, Protocol, find_protocol
from training.support.command import UserError

# Of CARL's released configuration for FineGym; its supervised configuration has 0.1.
PROBE_LR = 50.0
PROBE_EPOCHS = 100


@dataclass(frozen=True)
class Options:
    """What is computed of frame embeddings, and how.

    Lists are stored as tuples. Raises UserError for a value that the protocol does not have.

    Args:
        protocol: one of PROTOCOLS.
        stride: step in frames of Kendall's tau and, in CARL's protocol, of AP@K (CARL: 5 for
            Pouring, 2 for Penn Action). Default: the protocol's.
        fractions: shares of the training videos for classification. The last one is the column
            ``classification`` (AE2: ``weighted_f1``), the others are
            ``classification_at_<fraction>``.
        few_shot: numbers of labelled training videos that classifiers are also fitted to, "half"
            for half of them. True or () stands for the protocol's own numbers, None or False for
            no few-shot classification.
        episodes: number of random choices of each number of videos. Default: the protocol's.
        metrics: names of METRICS. Default: all that the protocol has.
        ks: numbers of nearest frames of retrieval. Default: the protocol's.
        frame_index: whether progression is predicted from the embedding and the frame's index
            (AE2 on Pour Liquid).
        probe_lr: initial learning rate of protocol "finegym" (CARL: 50, supervised runs 0.1).
        probe_epochs: its number of passes over the training frames (CARL: 100).
    """

    protocol: str = "carl"
    stride: int | None = None
    fractions: Sequence[float] = (1.0,)
    few_shot: Sequence[int | str] | bool | None = None
    episodes: int | None = None
    metrics: Sequence[str] | None = None
    ks: Sequence[int] | None = None
    frame_index: bool = False
    probe_lr: float = PROBE_LR
    probe_epochs: int = PROBE_EPOCHS

    def __post_init__(self) -> None:
        chosen = find_protocol(self.protocol)
        self._set("stride", chosen.stride if self.stride is None else self.stride)
        if self.stride < 1:
            raise UserError(f"stride is {self.stride}; expected at least 1")
        self._set("fractions", tuple(self.fractions))
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise UserError(f"fractions are {list(self.fractions)}; expected numbers in (0, 1]")
        self._set("metrics", self._metrics(chosen))
        self._set("ks", self._ks(chosen))
        self._set("few_shot", self._few_shot(chosen))
        if self.episodes is not None and not self.few_shot:
            raise UserError(
                "--episodes is the number of random choices of few-shot classification; add "
                "--few-shot"
            )
        if self.episodes is not None and self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}; expected at least 1")
        if self.frame_index and self.protocol != "ae2":
            raise UserError(
                f"the frame index is part of the protocol ae2, not {self.protocol}; leave it out"
            )
        if self.frame_index and "progression" not in self.metrics:
            raise UserError("the frame index changes progression alone; add it to the metrics")
        probe = (self.probe_lr, self.probe_epochs)
        if not chosen.joint and probe != (PROBE_LR, PROBE_EPOCHS):
            raise UserError(
                "--probe-lr and --probe-epochs are of the protocol finegym, not "
                f"{self.protocol}; leave them out"
            )
        if not self.probe_lr > 0:
            raise UserError(f"probe_lr is {self.probe_lr}; expected a number above 0")
        if self.probe_epochs < 1:
            raise UserError(f"probe_epochs is {self.probe_epochs}; expected at least 1")

    @property
    def definition(self) -> Protocol:
        """The protocol's entry in PROTOCOLS."""
        return PROTOCOLS[self.protocol]

    @property
    def draws(self) -> dict[str, int]:
        """Number of labelled training videos, or "half" -> number of random choices."""
        default = self.definition.few_shot
        return {
            count: self.episodes or default.get(count, default["1"])
            for count in self.few_shot or ()
        }

    def classifier(self) -> dict[str, Any]:
        """The arguments of `classifiers.classification`."""
        chosen = self.definition
        given: dict[str, Any] = {
            "classifier": chosen.classifier,
            "weighted_f1": chosen.weighted_f1,
        }
        if chosen.classifier == "sgd":
            given["probe"] = {"lr": self.probe_lr, "epochs": self.probe_epochs}
        return given

    def facts(self) -> dict[str, Any]:
        """The entries of evaluation.json that state what was computed."""
        chosen = self.definition
        found: dict[str, Any] = {"protocol": self.protocol, "fractions": list(self.fractions)}
        if {"tau", "retrieval"} & {*self.metrics}:
            found["stride"] = self.stride
        if self.metrics != chosen.metrics:
            found["metrics"] = list(self.metrics)
        if "retrieval" in self.metrics:
            found["ks"] = list(self.ks)
        if self.few_shot:
            found["few_shot"] = self.draws
        if self.frame_index:
            found["frame_index"] = True
        if chosen.joint:
            found |= {"probe_lr": self.probe_lr, "probe_epochs": self.probe_epochs}
        return found

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _metrics(self, chosen: Protocol) -> tuple[str, ...]:
        if self.metrics is None:
            return chosen.metrics
        absent = [name for name in self.metrics if name not in chosen.metrics]
        if absent or not self.metrics:
            raise UserError(
                f"metrics are {list(self.metrics)}; protocol {self.protocol} has "
                f"{', '.join(chosen.metrics)}"
            )
        return tuple(name for name in METRICS if name in self.metrics)

    def _ks(self, chosen: Protocol) -> tuple[int, ...]:
        if self.ks is None or tuple(self.ks) == chosen.ks:
            return chosen.ks
        if "retrieval" not in self.metrics:
            raise UserError(
                "ks are numbers of retrieved frames, but retrieval is not computed "
                f"(protocol {self.protocol}, metrics {', '.join(self.metrics)}); leave ks out"
            )
        if not self.ks or not all(k >= 1 for k in self.ks):
            raise UserError(f"ks are {list(self.ks)}; expected numbers of frames, at least 1")
        return tuple(dict.fromkeys(self.ks))

    def _few_shot(self, chosen: Protocol) -> tuple[str, ...] | None:
        if self.few_shot is None or self.few_shot is False:
            return None
        if self.few_shot is True or not self.few_shot:
            return tuple(chosen.few_shot)
        counts = tuple(dict.fromkeys(map(str, self.few_shot)))
        if wrong := [one for one in counts if one != "half" and not (one.isdigit() and int(one))]:
            raise UserError(
                f"few_shot has {', '.join(wrong)}; expected numbers of videos, at least 1, or half"
            )
        return counts


# Arguments of commands, by the names of the fields of Options.
ARGUMENTS = (
    *("stride", "fractions", "few_shot", "episodes", "metrics", "ks", "frame_index"),
    *("probe_lr", "probe_epochs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ARGUMENTS to the parser of a command."""
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="M",
        help=f"the metrics that are computed, of {', '.join(METRICS)} (default: all that the "
        "protocol has)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        help="step in frames of Kendall's tau and of CARL's AP@K (default 5; CARL uses 2 "
        "for Penn Action)",
    )
    parser.add_argument(
        "--ks",
        type=int,
        nargs="+",
        metavar="K",
        help="numbers of nearest frames of retrieval (default: 5 10 15; ae2: 10)",
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="F",
        help="shares of the training videos that classifiers are fitted to (default 1.0; CARL: "
        "0.1 0.5 1.0)",
    )
    parser.add_argument(
        "--few-shot",
        nargs="*",
        metavar="COUNT",
        help="also classify from COUNT training videos that are drawn at random (without COUNT: "
        "1 2 3 5 10, ae2 also half of the videos), with the mean and standard deviation over the "
        "draws and a plot, RUN/few_shot.png",
    )
    parser.add_argument(
        "--episodes",
        type=int,
        metavar="N",
        help="number of draws of each COUNT (default 10; ae2: 50, and 10 of half of the videos)",
    )
    parser.add_argument(
        "--frame-index",
        action="store_true",
        help="with --protocol ae2: predict progression from the embedding and the frame's index, "
        "as AE2 does for Pour Liquid",
    )
    parser.add_argument(
        "--probe-lr",
        type=float,
        default=PROBE_LR,
        metavar="LR",
        help="with --protocol finegym: initial learning rate of the linear classifier (default "
        "%(default)g; CARL: 0.1 for a supervised run)",
    )
    parser.add_argument(
        "--probe-epochs",
        type=int,
        default=PROBE_EPOCHS,
        metavar="N",
        help="with --protocol finegym: passes over the training frames (default %(default)s)",
    )


def from_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Options that a command line sets, its protocol included."""
    return {"protocol": args.protocol} | {name: getattr(args, name) for name in ARGUMENTS}
