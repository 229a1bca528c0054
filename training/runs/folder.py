"""The content of a run directory, the checks before a run, and its start or continuation."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from training.data.folders import folders_of
from training.data.label_values import SPLITS
from training.recipe.load import ConfigError, differences, load_config, may_change
from training.runs.checkpoint import INITIAL, save_initial
from training.runs.model import BEST, LATEST, checkpoint_name, weights_to_keep
from training.runs.videos import TRAINING_VIDEOS, write_training_videos
from training.support.distributed import gather_objects, max_over_ranks, rank, run_on_main
from training.support.files import file_name, write_text

if TYPE_CHECKING:
    from training.loop.trainer import Trainer

logger = logging.getLogger(__name__)

# The files that training and evaluation write into a run directory; --overwrite removes only these.
RUN_CONTENTS = ("config.yaml", "environment.json", "log.jsonl", "tensorboard", "checkpoints")
RUN_CONTENTS += (INITIAL, TRAINING_VIDEOS, "evaluations.jsonl")
RUN_CONTENTS += (
    "evaluation.json",
    "evaluation_val.json",
    "evaluation_train.json",
    "best.json",
    "classes.json",
    "embeddings",
    "few_shot.png",
    "confusion.png",
    "report.html",
    "pictures",
    "retrieval.png",
    "retrieval_all.png",
    "retrieval_videos.png",
    "gradcam.png",
    "wandb",
)


def evaluation_file(
    split: str | None = None, class_set: str | None = None, checkpoint: str | None = None
) -> str:
    """Name of the file in a run directory that `python -m training.evaluate` writes.

    A class set whose name begins like a checkpoint or a split always follows a split, so no two
    choices share a file.

    Args:
        split: the value of --split.
        class_set: the scored class set if it is not the run's.
        checkpoint: the value of --checkpoint.
    """
    parts = ["evaluation"]
    if checkpoint not in (None, LATEST):
        parts.append(checkpoint_name(checkpoint))
    first = (class_set or "").partition("_")[0]
    if split not in (None, "test") or first in (*SPLITS, BEST, "step"):
        parts.append(split or "test")
    if class_set:
        parts.append(file_name(class_set))
    return "_".join(parts) + ".json"


def contents(run_dir: Path) -> list[Path]:
    """The files and folders of a run that exist; evaluations of other choices among them."""
    found = [run_dir / name for name in RUN_CONTENTS if (run_dir / name).exists()]
    for path in sorted(run_dir.glob("evaluation_*.json")):
        if path not in found and _of_other_choice(path):
            found.append(path)
    others = [path for path in found if path.name.startswith("evaluation_")]
    for kind in ("few_shot", "confusion"):
        found += [one for other in others if (one := picture_beside(other, kind)).exists()]
    return found


def picture_beside(evaluation: Path, kind: str) -> Path:
    """The picture of an evaluation's file: RUN/few_shot_val.png for that of val."""
    return evaluation.with_name(evaluation.name.replace("evaluation", kind, 1)).with_suffix(".png")


def _of_other_choice(path: Path) -> bool:
    """Whether `evaluate` wrote this file under this name: copies that users made stay theirs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        choices = itertools.product(
            (None, *SPLITS), (None, content["class_set"]), (None, content.get("checkpoint"))
        )
        return path.name in [evaluation_file(*choice) for choice in choices]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def restarted(run_dir: Path) -> bool:
    """Whether torchrun restarted the ranks of the existing run. To be called on every rank.

    The number of the restart is that of one machine: 0 on a machine whose ranks end because those
    of another one do, and everywhere after a machine has come or gone. But the torchrun of at
    least one machine is still the same.
    """
    torchruns = gather_objects(_torchrun())
    again = max_over_ranks(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))) > 0

    def same_launch() -> bool:
        path = run_dir / "environment.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        if "launch" not in before or before["launch"] != os.environ.get("TORCHELASTIC_RUN_ID"):
            return False
        return again or not set(torchruns).isdisjoint(before.get("torchruns", []))

    return run_on_main(same_launch)


def _torchrun() -> str:
    """The torchrun process that started this one, and the time at which it started."""
    number = os.getppid()
    try:  # in a container every torchrun may have the same number
        after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2]
        started = after_name.split()[19]
    except (OSError, IndexError):  # not Linux
        started = ""
    return f"{socket.gethostname()}:{number}:{started}"


def check_run_dir(cfg: DictConfig, run_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """ConfigError if two runs would mix, or if a run would continue with another configuration."""
    existing = next(
        path for path in (run_dir.resolve(), *run_dir.resolve().parents) if path.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "is not writable" if existing.is_dir() else "is a file"
        raise ConfigError(
            f"train.run_dir: {run_dir} cannot be written to, {existing} {what}; choose another one"
        )
    if contents(run_dir) and not (resume or overwrite):
        raise ConfigError(
            f"{run_dir} already holds a run: add --resume to continue it or --overwrite to replace "
            "it, or choose another train.run_dir"
        )
    if resume:
        if not (run_dir / "config.yaml").exists():
            raise ConfigError(f"--resume: there is no run in {run_dir}; start one without --resume")
        started = load_config(run_dir / "config.yaml")
        changed = [
            f"{key} = {OmegaConf.select(started, key)} (now {OmegaConf.select(cfg, key)})"
            for key in sorted(set(differences(cfg, started)) - may_change())
        ]
        # Features are made of other pixels than frames, so this change affects what is learned.
        caches = {started.data.cache, cfg.data.cache}
        if "features" in caches and len(caches) > 1:
            changed.append(f"data.cache = {started.data.cache} (now {cfg.data.cache})")
        if changed:
            raise ConfigError(
                f"--resume: {run_dir} was started with other values: {', '.join(changed)}. Use "
                "those values, or choose another train.run_dir"
            )


def open_run(trainer: Trainer, *, resume: bool) -> None:
    """Write the first files of a run directory, or continue from its last checkpoint.

    Without ``resume``, the files of an earlier run are removed first.
    """
    cfg, run_dir = trainer.cfg, trainer.run_dir
    torch.manual_seed(cfg.train.seed + (rank() << 32))  # different dropout on every rank
    resumed = resume and trainer.resume()
    torchruns = sorted(set(gather_objects(_torchrun())))

    def write() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not resume:
            for path in contents(run_dir):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        facts = trainer.environment()
        if launch := os.environ.get("TORCHELASTIC_RUN_ID"):
            facts |= {"launch": launch, "torchruns": torchruns}
        write_text(run_dir / "environment.json", json.dumps(facts, indent=2))
        if trainer.step < trainer.steps:  # a finished run trains on nothing more
            folders = len(folders_of(cfg))
            videos = trainer.loader.items.videos
            write_training_videos(run_dir, videos, resumed=resumed, folders=folders)
        if cfg.model.weights and not resumed:
            save_initial(run_dir, weights_to_keep(cfg, trainer.model))

    run_on_main(write)
    if resume and not resumed:
        logger.info("no checkpoint in %s yet: starting at step 0", run_dir)
    if trainer.step >= trainer.steps:
        logger.info("%s: all %d steps are done, nothing is left to train", run_dir, trainer.steps)
        return
    logger.info(
        "%s: %d videos, steps %d to %d on %s",
        run_dir,
        len(trainer.loader.items),
        trainer.step,
        trainer.steps,
        trainer.device,
    )
