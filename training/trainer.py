"""The training loop."""

import logging
import math
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from fastseq.video import ClipLoader
from training.checkpoint import (
    load_latest,
    load_weights,
    random_state,
    save_checkpoint,
    set_random_state,
)
from training.config import ConfigError
from training.models import VideoEncoder
from training.objectives import Clips, Objective
from training.runlog import RunLog, collapse_measures

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """The loss stayed NaN or infinite."""


def total_steps(cfg: DictConfig, epoch_steps: int) -> int:
    if cfg.train.steps is not None:
        return cfg.train.steps
    return cfg.train.epochs * epoch_steps


def learning_rate(cfg: DictConfig, progress: float) -> float:
    """Half a cosine from ``optim.lr`` at progress 0 to 0 at progress 1, without restarts."""
    if cfg.optim.schedule == "constant":
        return cfg.optim.lr
    return cfg.optim.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def choose_device(cfg: DictConfig) -> torch.device:
    """``train.device``; ConfigError when it does not exist here."""
    name = cfg.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise ConfigError(
            f"train.device: {name!r} cannot be used here ({reason}); expected auto, cpu, cuda or "
            "cuda:N"
        ) from error
    return device


def uses_bf16(cfg: DictConfig, device: torch.device) -> bool:
    if cfg.train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return cfg.train.precision == "bf16"


def check_loss(cfg: DictConfig, device: torch.device) -> None:
    """ConfigError for loss options that a loss refuses, before there is a run to spoil."""
    dtype = torch.bfloat16 if uses_bf16(cfg, device) else torch.float32

    def zeros(size: int) -> Tensor:
        return torch.zeros(1, 2, 2, size, device=device, dtype=dtype)

    steps = torch.arange(2, device=device).expand(1, 2, 2)
    num_frames = torch.full((1, 2), 2, device=device)
    model = cfg.model
    h, z = zeros(model.embedding_size), zeros(model.projection_size)
    try:
        Objective(cfg.loss)(Clips(h, z, steps, None, num_frames))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"loss: {error}") from error


class Trainer:
    """Trains a model on items of two clips until its steps, its time or a signal ends it.

    Nothing is written before `run`; ConfigError or ValueError for options that cannot work.

    Everything the next step depends on is in a checkpoint: on a CPU with the same number of
    threads, a resumed run equals the uninterrupted one bit for bit (without ``max_minutes``).
    """

    def __init__(
        self, cfg: DictConfig, model: VideoEncoder, loader: ClipLoader, run_dir: Path
    ) -> None:
        self.cfg, self.loader, self.run_dir = cfg, loader, run_dir
        self.device = choose_device(cfg)
        self.bf16 = uses_bf16(cfg, self.device)
        self.model = model.to(self.device).train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=cfg.optim.lr,
            betas=tuple(cfg.optim.betas),
            weight_decay=cfg.optim.weight_decay,
        )
        self.objective = Objective(cfg.loss)
        self.epoch_steps = loader.batches_per_epoch
        self.steps = total_steps(cfg, self.epoch_steps)
        self.step = 0
        self.seconds = 0.0  # spent in earlier parts of the run and in this one
        self.skipped = 0  # steps without a finite loss, in all and in a row
        self.skipped_in_a_row = 0
        self.losses: list[float] = []  # since the last log line

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False when the run has none yet."""
        folder = self.run_dir / "checkpoints"
        state = load_latest(folder, keys=self._state())
        if state is None:
            return False
        load_weights(self.model, state, folder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.losses = state["losses"]
        self.loader.load_state_dict(state["loader"])
        set_random_state(state["random"])
        return True

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": self.losses,
            "loader": self.loader.state_dict(),
        }

    def save(self) -> Path:
        folder, keep = self.run_dir / "checkpoints", self.cfg.train.keep_checkpoints
        return save_checkpoint(folder, self.step, self._state(), keep)

    def run(self) -> int | None:
        """Train to the end, with a checkpoint there; the number of the signal that ended it."""
        log = RunLog(self.run_dir, self.step)
        saved_at = self.step if self.step else -1
        try:
            with _Signals() as signals, self._progress_bar() as bar:
                for _ in self._train_steps(log, bar):
                    if self.step % self.cfg.train.checkpoint_every == 0:
                        self.save()
                        saved_at = self.step
                    if signals.received or self._out_of_time():
                        break
                if saved_at != self.step:
                    self.save()
                return signals.received
        finally:
            self.loader.engine.close()
            log.close()

    def _train_steps(self, log: RunLog, bar: tqdm) -> Iterator[None]:
        frames = waited = 0.0
        clock, logged_at = time.perf_counter(), self.seconds
        for batch in self.loader.stream(self.steps):
            arrived = time.perf_counter()
            waited += arrived - clock
            rate = learning_rate(self.cfg, self._progress())
            loss, norm, h, parts = self._train_step(batch, rate)
            self.step += 1
            self._count(loss, norm, batch)
            frames += batch["valid"].numel()
            now = time.perf_counter()
            self.seconds += now - clock
            clock = now
            if self.step % self.cfg.train.log_every == 0 or self.step == self.steps:
                elapsed = self.seconds - logged_at
                values = {
                    "epoch": self.step // self.epoch_steps,
                    "loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
                    "lr": rate,
                    "grad_norm": norm,
                    "frames_per_s": frames / elapsed,
                    "data_wait": waited / elapsed,
                    "skipped": self.skipped,
                    "bad_videos": len(self.loader.bad),
                    "seconds": self.seconds,
                }
                log.write(self.step, values | parts | collapse_measures(h))
                bar.set_postfix(
                    loss=f"{values['loss']:.3f}",
                    frames_per_s=round(values["frames_per_s"]),
                    data_wait=f"{values['data_wait']:.0%}",
                    refresh=False,
                )
                self.losses.clear()
                frames = waited = 0.0
                logged_at = self.seconds
            bar.update()
            yield
            clock = time.perf_counter()  # what the caller did is neither waiting nor training

    def _train_step(
        self, batch: dict[str, Any], rate: float
    ) -> tuple[float, float, Tensor, dict[str, float]]:
        """One optimizer step; the loss, the gradient norm before clipping, real rows of h, and the
        losses of which there are several."""
        n, clips, t = batch["valid"].shape
        # Most batches have no padding; known on the host, the mask can be left out.
        padded = not bool(batch["valid"].all())
        frames, steps, valid, num_frames = (
            batch[key].to(self.device, non_blocking=True)
            for key in ("frames", "steps", "valid", "num_frames")
        )
        valid = valid if padded else None
        rows = None if valid is None else valid.flatten(0, 1)
        z = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            h = self.model.encode(frames.flatten(0, 1), rows)
            if self.objective.needs_projection:
                z = self.model.project(h, rows).view(n, clips, t, -1)
        loss, parts = self.objective(
            Clips(h.view(n, clips, t, -1), z, steps, valid, num_frames),
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = self.cfg.optim.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if clip is None else clip)
        loss_value, norm_value, *values = torch.stack(
            [loss.detach(), norm, *(part.detach() for part in parts.values())]
        ).tolist()
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        several = len(parts) > 1
        named = {f"loss_{name}": value for name, value in zip(parts, values, strict=True)}
        real = h.flatten(0, 1) if rows is None else h[rows]
        return loss_value, norm_value, real, named if several else {}

    def _count(self, loss: float, norm: float, batch: dict[str, Any]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self.losses.append(loss)
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == 1:
            tqdm.write(
                f"step {self.step}: loss {loss}, gradient norm {norm}; step skipped "
                f"(videos {', '.join(batch['ids'])})",
                file=sys.stderr,
            )
        if self.skipped_in_a_row >= self.cfg.train.max_nonfinite:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a "
                f"row, up to step {self.step}; checkpoints hold the weights from before. Try a "
                "smaller optim.lr, train.precision=fp32 or a larger temperature of the loss"
            )

    def _progress(self) -> float:
        """Share of the run that is over, by steps or, if it comes first, by time."""
        by_time = 0.0
        if self.cfg.train.max_minutes is not None:
            by_time = self.seconds / (60 * self.cfg.train.max_minutes)
        return max(self.step / self.steps, by_time)

    def _out_of_time(self) -> bool:
        minutes = self.cfg.train.max_minutes
        return minutes is not None and self.seconds >= 60 * minutes

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            desc="training",
            mininterval=0.5 if sys.stderr.isatty() else 30,  # keeps log files short
        )


class _Signals:
    """Turns the first SIGINT or SIGTERM into a request to stop; the second acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        tqdm.write("stopping after this step, with a checkpoint", file=sys.stderr)
        self.__exit__()
