"""Where the numbers of a training are written besides log.jsonl: TensorBoard or wandb."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from training.data.folders import names_of
from training.recipe.load import ConfigError
from training.support.files import write_text

logger = logging.getLogger(__name__)

NONE = "none"
WANDB_FOLDER = "wandb"  # in the run directory; wandb itself chooses this name
WANDB_ID = "run_id"  # in that folder


class Writer(Protocol):
    """Shows named numbers over the steps of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of one step; steps never decrease, and one step may be used twice."""

    def close(self) -> None:
        """Finish writing; nothing is added afterwards."""


class TensorBoardWriter:
    """Event files in ``RUN/tensorboard``.

    TensorBoard hides what an interrupted run wrote after ``start_step``.
    """

    def __init__(self, cfg: DictConfig, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A run of wandb, in ``RUN/wandb``, with the run's configuration.

    A resumed training continues the same run of wandb: ``RUN/wandb/run_id`` has its id. wandb
    ignores steps that it has already; so steps that an interrupted run wrote after its checkpoint
    keep their first values.
    """

    def __init__(self, cfg: DictConfig, run_dir: Path, start_step: int) -> None:
        import wandb

        id_file = run_dir / WANDB_FOLDER / WANDB_ID
        id_file.parent.mkdir(parents=True, exist_ok=True)
        known = id_file.read_text().strip() if start_step and id_file.is_file() else None
        self._run = wandb.init(
            project=cfg.log.project,
            name=cfg.log.name or run_dir.resolve().name,
            dir=str(run_dir.resolve()),
            config=OmegaConf.to_container(cfg, resolve=True),
            mode=cfg.log.mode,
            id=known,
            resume="allow" if known else None,
        )
        write_text(id_file, f"{self._run.id}\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, Callable[[DictConfig, Path, int], Writer]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
}
EXTRAS = {"tensorboard": "fastseq[train]", "wandb": "fastseq[wandb]"}


class Writers:
    """Several writers as one. One that fails is named in a warning and left out from then on."""

    def __init__(self, cfg: DictConfig, run_dir: Path, start_step: int) -> None:
        self._writers: dict[str, Writer] = {}
        for name in chosen_writers(cfg):
            self._try(name, lambda name=name: self._open(name, cfg, run_dir, start_step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, writer in [*self._writers.items()]:
            self._try(name, lambda writer=writer: writer.scalars(step, values))

    def close(self) -> None:
        for name, writer in [*self._writers.items()]:
            self._try(name, writer.close)

    def _open(self, name: str, cfg: DictConfig, run_dir: Path, start_step: int) -> None:
        self._writers[name] = KINDS[name](cfg, run_dir, start_step)

    def _try(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # a log of a service must never end a training
            self._writers.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning(
                "log.writer: %s failed and is left out from now on (%s); log.jsonl has all numbers",
                name,
                reason,
            )


def chosen_writers(cfg: DictConfig) -> list[str]:
    """The names in ``log.writer``, each once, without "none"."""
    return [name for name in dict.fromkeys(names_of(cfg.log.writer)) if name != NONE]


def check_writers(cfg: DictConfig) -> None:
    """ConfigError for an unknown name in ``log.writer`` or one whose package is not installed."""
    for name in chosen_writers(cfg):
        if name not in KINDS:
            expected = ", ".join([NONE, *KINDS])
            raise ConfigError(f"log.writer: expected one or a list of {expected}, got {name!r}")
        try:
            package = importlib.import_module(name)
        except ImportError as error:
            package, reason = None, str(error)
        else:
            # A folder of this name, such as wandb's own, imports as an empty package.
            reason = f"no package {name} is installed"
        if getattr(package, "__file__", None) is None:
            raise ConfigError(
                f'log.writer: {name} needs: pip install "{EXTRAS[name]}" ({reason}); or choose '
                f"another writer, such as log.writer={NONE}"
            )
