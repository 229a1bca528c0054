"""Train an encoder on a folder of videos: python -m training.train RECIPE [key=value ...]."""

import argparse
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluation.cli import INCOMPLETE, LeftOut, missing_extra

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from fastseq.video import ClipLoader
    from training.loop.trainer import Trainer

# What training and evaluation write into a run directory; --overwrite removes these, nothing else.
RUN_CONTENTS = ("config.yaml", "environment.json", "log.jsonl", "tensorboard", "checkpoints")
RUN_CONTENTS += ("evaluation.json", "report.html", "pictures", "retrieval.png")

# Keys that may change when a run continues: where it runs and what it writes, not what it learns
# (except that max_minutes, where given, ends the cosine).
MAY_CHANGE = {
    "data.folder",
    "data.cache",
    "data.workers",
    "model.weights",
    "model.weights_key",
    *(f"loss.{name}.backend" for name in ("scl", "soft_dtw", "contrastive_idm", "lav", "tcc")),
    "loss.vclr.backend",
    "train.run_dir",
    "train.device",
    "train.checkpointing",
    "train.compile",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_nonfinite",
    "train.deterministic",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    recipes = (Path(__file__).parent / "recipes").glob("*.yaml")
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train an encoder on videos prepared with python -m training.prepare.",
        epilog="Example: python -m training.train recipes/carl_demo.yaml data.folder=videos "
        "train.run_dir=runs/first. "
        f"There are, in training/: {', '.join(f'recipes/{p.name}' for p in sorted(recipes))}. "
        "Every key with its meaning and default: training/recipe/schema.py. "
        "Exit status: 0 done; 3 done, but videos had to be left out, which are named as they are "
        "met and in the last lines (under torchrun, for which that is a crash, 0 instead); 1 "
        "training failed; 2 wrong request; 130 or 143 stopped by a signal, with a checkpoint.",
    )
    parser.add_argument("recipe", help="YAML file, relative to here or to training/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="replace recipe values"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in train.run_dir")
    existing.add_argument("--overwrite", action="store_true", help="replace the run there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 training failed, 2 wrong request, 130 or 143 after a signal.

    3: done, but videos had to be left out. Of several ranks 0 instead: torchrun would take 3 for a
    crash and, told so, start the run again.
    """
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(args)
    except KeyboardInterrupt:  # before the first step, or for the second time
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    try:  # only now, so that --help need not wait for torch
        import av  # noqa: F401  missing, it would show only when there is a run directory already
        import tensorboard  # noqa: F401

        from fastseq.video import TooManyBadVideos
        from training.loop.trainer import NonFiniteError, Trainer, check_loss
        from training.recipe.load import ConfigError
        from training.runs.checkpoint import CheckpointError
        from training.runs.model import initial_model
        from training.support import distributed
    except ImportError as error:
        print(f"error: {missing_extra(error, 'training')}", file=sys.stderr)
        return 2

    distributed.start()
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.ERROR)
    try:
        cfg, device = distributed.together(lambda: _configure(args))
        run_dir = Path(cfg.train.run_dir)
        if distributed.on_main(lambda: _restarted(run_dir)):
            args.resume, args.overwrite = True, False
        if not args.dry_run:
            distributed.on_main(lambda: check_run_dir(cfg, run_dir, args))
        check_loss(cfg, device)
        left_out = LeftOut()

        def assemble() -> Trainer:
            model = initial_model(cfg)
            # Last: it may decode everything.
            loader = open_loader(cfg, device, dry_run=args.dry_run, left_out=left_out)
            return Trainer(cfg, model, loader, run_dir)

        trainer = distributed.together(assemble)
        if not args.dry_run:
            open_run(trainer, resume=args.resume)
    except (ConfigError, OSError, ValueError, TooManyBadVideos, CheckpointError) as error:
        if getattr(error, "speaks", distributed.is_main()):
            _complain(error)
        return 2
    except distributed.OtherRankFailed:
        return 2
    if args.dry_run:
        from training.loop.dry_run import describe

        text = describe(trainer)  # runs the encoder, which may wait for the other ranks
        if distributed.is_main():
            print(text)
        return 0
    try:
        received = trainer.run()
        left_out.videos.update(trainer.left_out())
    except (NonFiniteError, CheckpointError) as error:  # on all ranks
        if distributed.is_main():
            _complain(error)
        return 1
    except (TooManyBadVideos, OSError) as error:  # on this one; torchrun ends the others
        _complain(error)
        if isinstance(error, TooManyBadVideos):
            again = "once they can be read again, --resume continues the run"
            print(f"{again}; without them a new one is needed", file=sys.stderr)
        return 1
    for line in left_out.lines():
        logging.warning("%s", line)
    if received:
        if distributed.is_main():
            print(f"stopped; continue with --resume: {run_dir}", file=sys.stderr)
            if distributed.world_size() == 1:  # else under a launcher with options of its own
                words = shlex.join([args.recipe, *args.overrides, "--resume"])
                print(f"  python -m training.train {words}", file=sys.stderr)
        return 128 + received
    logging.info("done: python -m training.evaluate, extract, align and export take %s", run_dir)
    return INCOMPLETE if left_out.videos and distributed.world_size() == 1 else 0


def _complain(error: Exception) -> None:
    from training.support.distributed import rank

    where = f"rank {rank()}: " if rank() else ""
    print(f"error: {where}{error}", file=sys.stderr)


def _configure(args: argparse.Namespace) -> "tuple[DictConfig, torch.device]":
    from training.loop.trainer import choose_device, set_deterministic
    from training.recipe.load import ConfigError
    from training.support.distributed import world_size

    cfg = compose(args)
    if cfg.data.batch_size % world_size():
        raise ConfigError(
            f"data.batch_size: {cfg.data.batch_size} items cannot be shared by {world_size()} "
            "ranks; give a multiple"
        )
    set_deterministic(cfg)
    return cfg, choose_device(cfg)


def _restarted(run_dir: Path) -> bool:
    """Whether torchrun --max-restarts started this process again for the run that is there."""
    path = run_dir / "environment.json"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not path.exists():
        return False
    return json.loads(path.read_text()).get("launch") == os.environ.get("TORCHELASTIC_RUN_ID")


def compose(args: argparse.Namespace) -> "DictConfig":
    """The configuration, with the run directory filled in and paths that hold from anywhere."""
    from training.recipe.load import ConfigError, load_config

    cfg = load_config(args.recipe, args.overrides)
    if not cfg.data.folder:
        raise ConfigError("data.folder: not given; add data.folder=FOLDER with your videos")
    cfg.data.folder = str(Path(cfg.data.folder).resolve())
    if cfg.model.weights:
        cfg.model.weights = str(Path(cfg.model.weights).resolve())
    cfg.train.run_dir = cfg.train.run_dir or f"runs/{Path(args.recipe).stem}"
    return cfg


def check_run_dir(cfg: "DictConfig", run_dir: Path, args: argparse.Namespace) -> None:
    """Refuse to mix two runs, or to continue one under another configuration."""
    from omegaconf import OmegaConf

    from training.recipe.load import ConfigError, differences, load_config

    existing = next(
        path for path in (run_dir.resolve(), *run_dir.resolve().parents) if path.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "is not writable" if existing.is_dir() else "is a file"
        raise ConfigError(
            f"train.run_dir: {run_dir} cannot be written to, {existing} {what}; give another one"
        )
    exists = any((run_dir / name).exists() for name in RUN_CONTENTS)
    if exists and not (args.resume or args.overwrite):
        raise ConfigError(
            f"{run_dir} already holds a run: give --resume to continue it, --overwrite to replace "
            "it, or another train.run_dir"
        )
    if args.resume:
        if not (run_dir / "config.yaml").exists():
            raise ConfigError(f"--resume: there is no run in {run_dir}; without it one is started")
        started = load_config(run_dir / "config.yaml")
        changed = [
            f"{key} = {OmegaConf.select(started, key)} (now {OmegaConf.select(cfg, key)})"
            for key in sorted(set(differences(cfg, started)) - MAY_CHANGE)
        ]
        if changed:
            raise ConfigError(
                f"--resume: {run_dir} was started with other values: {', '.join(changed)}. Give "
                "those, or another train.run_dir"
            )


def open_loader(
    cfg: "DictConfig",
    device: "torch.device",
    *,
    dry_run: bool = False,
    left_out: LeftOut | None = None,
) -> "ClipLoader":
    """The loader of a run; ``left_out`` gets the number of files that `prepare` had left out."""
    from omegaconf import OmegaConf

    import training.data.dataset
    from fastseq.video import TooManyBadVideos
    from training.data.index import load_index
    from training.recipe.load import ConfigError
    from training.support.distributed import is_main, rank, world_size

    index = load_index(cfg.data.folder)
    if left_out is not None:
        left_out.in_index = len(index.bad)
    records = [record for record in index.videos if record.split == cfg.data.train_split]
    if not records:
        if not index.videos:
            raise ConfigError(
                f"data.folder: {cfg.data.folder} has no video that can be read; "
                f"`python -m training.prepare {cfg.data.folder}` says why"
            )
        splits = sorted({record.split for record in index.videos})
        raise ConfigError(
            f"data.train_split: no video of split {cfg.data.train_split!r} in {cfg.data.folder}, "
            f"only of {', '.join(splits)}"
        )
    augmentation = OmegaConf.to_object(cfg.augmentation)
    try:
        loader, reason = training.data.dataset.open_loader(
            records,
            cfg.data,
            augmentation,
            cfg.train.seed,
            device=device,
            rank=rank(),
            world_size=world_size(),
            fill_cache=not dry_run,  # it decodes everything
            progress=is_main(),
        )
    except (ImportError, RuntimeError) as error:
        if isinstance(error, TooManyBadVideos):
            raise
        raise ConfigError(f"data.engine: {error}") from error
    for name, why in loader.items.left_out:
        logging.warning("left out %s: %s", name, why)
    logging.info("videos are read by %s: %s", loader.engine.name, reason)
    return loader


def open_run(trainer: "Trainer", *, resume: bool) -> None:
    """Write what a run directory starts with, or take up the training from its last checkpoint.

    Without ``resume``, what an earlier run left there is removed first.
    """
    import torch
    from omegaconf import OmegaConf

    from training.runs.checkpoint import write_text
    from training.runs.environment import environment
    from training.support.distributed import on_main, rank

    cfg, run_dir = trainer.cfg, trainer.run_dir
    torch.manual_seed(cfg.train.seed + (rank() << 32))  # every rank its own dropout
    resumed = resume and trainer.resume()

    def write() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in RUN_CONTENTS:
                path = run_dir / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        facts = environment(trainer.device, trainer.bf16)
        if launch := os.environ.get("TORCHELASTIC_RUN_ID"):
            facts["launch"] = launch
        write_text(run_dir / "environment.json", json.dumps(facts, indent=2))

    on_main(write)
    if resume and not resumed:
        logging.info("no checkpoint in %s yet: starting at step 0", run_dir)
    if trainer.step >= trainer.steps:
        logging.info("%s: all %d steps are done, nothing is left to train", run_dir, trainer.steps)
        return
    logging.info(
        "%s: %d videos, steps %d to %d on %s",
        run_dir,
        len(trainer.loader.items),
        trainer.step,
        trainer.steps,
        trainer.device,
    )


if __name__ == "__main__":
    status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.support.distributed import leave

        leave(status)
    sys.exit(status)
