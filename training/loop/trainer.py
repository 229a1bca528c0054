"""The training loop."""

import logging
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from fastseq.video import ClipLoader, TooManyBadVideos
from training.loop.action_step import ActionStep
from training.loop.dpc_step import DPCStep
from training.loop.meter import Meter
from training.loop.optimizer import check_optimizer, make_optimizer
from training.loop.pair_step import PairStep
from training.loop.precision import precision_name, precision_of
from training.loop.resuming import check_shards, same_ranks
from training.loop.schedule import learning_rate, milestone_shares, total_steps, warmup_share
from training.loop.seco_step import SeCoStep
from training.loop.step import GradientStep, StepResult
from training.loop.vclr_step import VCLRStep
from training.models import VCLRModel, VideoEncoder
from training.recipe.load import ConfigError
from training.runs.best import BestCheckpoint
from training.runs.checkpoint import (
    load_latest,
    load_weights,
    random_state,
    save_checkpoint,
    set_random_state,
)
from training.runs.environment import environment, warn_if_inexact
from training.runs.log import EVALUATIONS, RunLog, collapse_measures, read_lines
from training.runs.writers import Writers
from training.support.command import UserError
from training.support.distributed import (
    broadcast_from_main,
    gather_objects,
    is_main,
    launched_by_torchrun,
    local_rank,
    rank,
    run_on_main,
    world_size,
)
from training.support.lost import is_communication
from training.support.signals import ENDING, Signals

logger = logging.getLogger(__name__)

# Losses that are trained by another step than `PairStep`; none is combined with others.
STEPS = {"vclr": VCLRStep, "seco": SeCoStep, "dpc": DPCStep, "action": ActionStep}


class NonFiniteError(UserError):
    """The loss stayed NaN or infinite."""


def choose_device(cfg: DictConfig) -> torch.device:
    """``train.device``, one GPU per process; ConfigError if the device does not exist."""
    name = cfg.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched_by_torchrun():
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise ConfigError(
            f"train.device: {name!r} cannot be used here ({reason}); expected auto, cpu, cuda or "
            "cuda:N"
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def set_deterministic(cfg: DictConfig) -> None:
    """Apply ``train.deterministic``: the same bits from run to run on a GPU. To be called first."""
    if cfg.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not called without need, because it imports torch's compiler.
    if torch.get_deterministic_debug_mode() != (2 if cfg.train.deterministic else 0):
        torch.use_deterministic_algorithms(cfg.train.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # slow, for debugging
    torch.backends.cudnn.deterministic = cfg.train.deterministic
    torch.backends.cudnn.benchmark = False


def step_class(cfg: DictConfig) -> type[GradientStep]:
    """The class that trains a recipe; nowhere else does the loop ask which loss it has."""
    for loss, step in STEPS.items():
        if cfg.loss[loss].weight:
            return step
    return PairStep


def check_loss(cfg: DictConfig, device: torch.device) -> None:
    """Raise UserError for invalid options of the losses, the optimizer and the precision.

    To be called before anything is written to the run's folder.
    """
    precision = precision_of(cfg, device)
    try:
        check_optimizer(cfg.optim)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    step = step_class(cfg)
    try:
        step.check(cfg, device, precision)
    except (ValueError, RuntimeError) as error:
        if is_communication(error):  # losses over ranks wait for the other ranks
            raise
        raise ConfigError(f"{step.section}: {error}") from error


class Trainer:
    """Trains a model on items of clips until its last step, its time limit or a signal.

    Nothing is written before `run`. Options that cannot work raise ConfigError or ValueError.

    A checkpoint contains everything that the next step depends on: on a CPU with the same number of
    threads and ranks, a resumed run equals the uninterrupted one bit for bit (without
    ``max_minutes``). With several ranks, rank 0 logs, evaluates and writes.

    ``evaluation``: function for ``train.evaluate_every`` that returns the values for
    RUN/evaluations.jsonl besides the step, or None; it must not change the model or the random
    generators. ``best``: keeps the best checkpoint by these, and ends the training early; all ranks
    end at the same step.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: VideoEncoder | VCLRModel,
        loader: ClipLoader,
        run_dir: Path,
        evaluation: Callable[[], dict[str, Any] | None] | None = None,
        best: BestCheckpoint | None = None,
    ) -> None:
        self.cfg, self.loader, self.run_dir = cfg, loader, run_dir
        self.device = choose_device(cfg)
        self.precision = precision_of(cfg, self.device)
        self.model = model.to(self.device).train()
        if cfg.train.compile:
            self.model.compile_backbone()
        self.optimizer = make_optimizer(cfg, model)
        self.gradient_step = step_class(cfg)(
            cfg, model, self.optimizer, self.device, self.precision
        )
        self.signals = Signals()
        self.steps = total_steps(cfg, loader.batches_per_epoch)
        self.warmup = warmup_share(cfg, self.steps, loader.batches_per_epoch)
        self.milestones = milestone_shares(cfg, self.steps, loader.batches_per_epoch)
        self.step = 0
        self.meter = Meter(cfg.data.split_time)
        self.bad_before = 0  # videos skipped before the current step
        self.evaluation, self.best = evaluation, best
        self.stopped_early = False

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False if the run has none yet.

        UserError if the run reads shards (`ByShard`) and had another number of ranks, or of ranks
        for each clip.
        """
        folder = self.run_dir / "checkpoints"
        average = self.gradient_step.average
        keys = (*self._state(), "model", "ranks", *(["ema"] if average is not None else []))
        # Rank 0 reads: other machines may not see the folder, and all ranks need the same one.
        state = run_on_main(lambda: load_latest(folder, keys=keys))
        if state is None:
            return False
        ranks, parts = state["ranks"], self.cfg.data.split_time
        check_shards(ranks[0]["loader"].get("order") or {}, self.run_dir, parts)
        load_weights(self.model, state, folder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradient_step.scaler.load_state_dict(state.get("scaler", {}))
        if average is not None:
            average.load_state_dict(state["ema"])
        self.step = state["step"]
        self.meter.load_state(state)
        if same_ranks(state, parts):
            self.loader.load_state_dict(ranks[rank()]["loader"])
            set_random_state(ranks[rank()]["random"])
        else:
            bad = {path: why for one in ranks for path, why in one["loader"]["bad"].items()}
            self.loader.load_state_dict(ranks[0]["loader"] | {"bad": bad})
        if is_main():
            warn_if_inexact(state["environment"], self.environment())
        return True

    def environment(self) -> dict[str, Any]:
        """The environment of this process, see `training.runs.environment.environment`."""
        return environment(self.device, precision_name(self.precision))

    @contextmanager
    def evaluated_model(self) -> Iterator[VideoEncoder | VCLRModel]:
        """Context with the model that is evaluated: it has the averaged weights with ``optim.ema``.

        It is the same object as ``model``; afterwards its weights are those of before, exactly.
        """
        average = self.gradient_step.average
        with nullcontext() if average is None else average.in_model():
            yield self.model

    def left_out(self) -> dict[str, str]:
        """The videos that any rank skipped, with the reasons. To be called on every rank."""
        ranks = gather_objects(self.loader.state_dict()["bad"])
        return {name: reason for bad in ranks for name, reason in bad.items()}

    def _state(self) -> dict[str, Any]:
        """The state that is the same on every rank, without the model, which is large."""
        state = {
            "step": self.step,
            "epoch": self._epoch(),
            "learning_rate": self._rate(),  # learning rate of the next step
            "optimizer": self.optimizer.state_dict(),
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "environment": self.environment(),
        } | self.meter.state()
        if self.gradient_step.scaler.is_enabled():
            state["scaler"] = self.gradient_step.scaler.state_dict()
        return state

    def save(self) -> None:
        """Write a checkpoint on rank 0; CheckpointError on every rank if that fails."""
        ranks = gather_objects({"random": random_state(), "loader": self.loader.state_dict()})
        state = self._state() | self._weights() | {"ranks": ranks}
        folder, keep = self.run_dir / "checkpoints", self.cfg.train.keep_checkpoints
        run_on_main(lambda: save_checkpoint(folder, self.step, state, keep))

    def run(self) -> int | None:
        """Train to the end and write a checkpoint; returns the signal that ended it, or None."""
        self.gradient_step.distribute()
        log = self._open_log() if is_main() else None
        saved_at = self.step if self.step else -1
        received = None
        try:
            # before the bar, which times steps
            self._evaluate(log, over=self.step == self.steps)
            with self.signals, self._progress_bar() as bar:
                for result in () if self.stopped_early else self._train_steps(log, bar):
                    ending = [n for n, asked in zip(ENDING, result.requests, strict=True) if asked]
                    received = max(ending, default=None)
                    over = self._out_of_time() or self.step == self.steps
                    if not received:  # after a signal the resumed run does it
                        self._evaluate(log, over=over)
                    ends = received or over or self.stopped_early
                    if ends or self.step % self.cfg.train.checkpoint_every == 0:
                        if log is not None:
                            log.sync()
                        self.save()
                        saved_at = self.step
                    if ends:
                        break
                if saved_at != self.step:  # unless a finished run was resumed
                    self.save()
                return received
        except TooManyBadVideos as error:
            error.speaks = self.loader.part[0] == 0  # all ranks that share clips raise it
            # With several ranks the others are not here to report their state.
            if world_size() == 1 and self.step > max(saved_at, 0):
                self.loader.position = self.step * self.cfg.train.accumulate
                while len(self.loader.bad) > self.bad_before:
                    self.loader.bad.popitem()  # no step lacks it yet, and the disk may return
                self.save()
            raise
        finally:
            self.loader.engine.close()
            if log is not None:
                log.close()

    def _open_log(self) -> RunLog:
        log = RunLog(
            self.run_dir,
            self.step,
            writer=Writers(self.cfg, self.run_dir, self.step),
            evaluations=self.evaluation is not None,
        )
        if self.best is not None:
            self.best.resume(self.step, read_lines(self.run_dir / EVALUATIONS))
        return log

    def _evaluate(self, log: RunLog | None, *, over: bool) -> None:
        """Evaluate at the chosen steps and at the end; sets ``stopped_early`` on every rank."""
        every = self.cfg.train.evaluate_every
        if every is None or not (over or self.step % every == 0):
            return
        self.stopped_early = run_on_main(lambda: self._evaluate_on_main(log, over))
        if self.stopped_early:
            logger.info("stopped early at step %d: %s", self.step, self.best.sentence())

    def _evaluate_on_main(self, log: RunLog, over: bool) -> bool:
        """Evaluate unless this step has a line already; whether the training stops early here."""
        found = None
        if self.evaluation is not None and log.last_evaluation != self.step:
            with self.evaluated_model():
                found = self.evaluation()
        if self.best is not None and found is not None:
            self.best.update(self.step, found, self._weights)
        stops = self.best is not None and self.best.exhausted and not over
        if found is not None:
            log.write_evaluation(self.step, found | ({"stopped_early": True} if stops else {}))
        return stops

    def _weights(self) -> dict[str, Any]:
        average = self.gradient_step.average
        ema = {} if average is None else {"ema": average.state_dict()}
        return {"model": self.model.state_dict()} | ema

    def _train_steps(self, log: RunLog | None, bar: tqdm) -> Iterator[StepResult]:
        cfg, meter = self.cfg.train, self.meter
        stream = self.loader.stream(self.steps * cfg.accumulate)
        while True:
            meter.start()  # the caller's time is neither waiting nor training
            self.bad_before = len(self.loader.bad)
            batches = list(islice(stream, cfg.accumulate))
            if not batches:
                break
            meter.arrived()
            rate = self._rate()
            result = self._train_step(batches, rate)
            self.step += 1
            meter.stepped(self.step, result, batches)
            if cfg.max_minutes is not None:  # time ends the run and determines the rate
                meter.seconds = broadcast_from_main(meter.seconds)
            hopeless = meter.skipped_in_a_row >= cfg.max_nonfinite
            if self.step % cfg.log_every == 0 or self.step == self.steps or hopeless:
                self._log(result, rate, log, bar)
            if hopeless:
                raise NonFiniteError(
                    f"the loss or its gradient was not finite in {meter.skipped_in_a_row} steps in "
                    f"a row, up to step {self.step}; checkpoints hold the weights from before. Try "
                    "a smaller optim.lr, train.precision=fp32 or a larger temperature of the loss"
                )
            bar.update()
            yield result

    def _train_step(self, batches: list[dict[str, Any]], rate: float) -> StepResult:
        return self.gradient_step(batches, rate, self.signals.requests)

    def _log(self, result: StepResult, rate: float, log: RunLog | None, bar: tqdm) -> None:
        bad = {path for paths in gather_objects(list(self.loader.bad)) for path in paths}
        values = {
            "epoch": self._epoch(),
            "loss": self.meter.loss,
            **self.gradient_step.log_values(rate),
            "grad_norm": result.norm,
            "frames_per_s": self.meter.frames_per_s,
            "data_wait": self.meter.data_wait,
            "skipped": self.meter.skipped,
            "bad_videos": len(bad),
            "seconds": self.meter.seconds,
        }
        measures: dict[str, float] = {}
        if log is not None:
            measures = collapse_measures(result.embeddings)
            log.write(self.step, values | result.losses | measures, self.meter.nonfinite)
        bar.set_postfix(
            loss=f"{values['loss']:.3f}",
            rank=f"{measures.get('effective_rank', math.nan):.1f}",
            spread=f"{measures.get('pairwise_distance', math.nan):.2f}",
            frames_per_s=round(values["frames_per_s"]),
            data_wait=f"{values['data_wait']:.0%}",
            **({"left_out": len(bad)} if bad else {}),
            refresh=False,
        )
        if (remark := self.meter.logged()) and is_main():
            bar.write(remark, file=sys.stderr)

    def _epoch(self) -> int:
        return self.step * self.cfg.train.accumulate // self.loader.batches_per_epoch

    def _rate(self) -> float:
        return learning_rate(self.cfg, self._progress(), self.warmup, self.milestones)

    def _progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is larger."""
        by_time = 0.0
        if self.cfg.train.max_minutes is not None:
            by_time = self.meter.seconds / (60 * self.cfg.train.max_minutes)
        return max(self.step / self.steps, by_time)

    def _out_of_time(self) -> bool:
        minutes = self.cfg.train.max_minutes
        return minutes is not None and self.meter.seconds >= 60 * minutes

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            desc="training",
            mininterval=0.5 if sys.stderr.isatty() else 30,  # short log files
            disable=not is_main(),
        )
