"""Train an encoder on a folder of videos: python -m training.train RECIPE [key=value ...]."""

import argparse
import functools
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import (
    INCOMPLETE,
    START_SPREAD,
    LeftOut,
    UserError,
    missing_extra,
    short_warnings,
)

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from fastseq.video import ClipLoader
    from training.evaluation.curve import StepEvaluation
    from training.models import VCLRModel, VideoEncoder


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    recipes = (Path(__file__).parent / "recipes").glob("*.yaml")
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train an encoder on videos prepared with python -m training.prepare. Writes "
        "checkpoints, the log and the configuration to train.run_dir.",
        epilog="Example: python -m training.train recipes/carl_demo.yaml data.folder=videos "
        "train.run_dir=runs/first. "
        f"Recipes in training/: {', '.join(f'recipes/{p.name}' for p in sorted(recipes))}. "
        "training/recipe/schema.py and losses.py list every key with its meaning and default. "
        "Exit status: 0 done; 3 done without the videos that could not be read, which are named "
        "when met and at the end (0 under torchrun, which would treat 3 as a crash); 1 training "
        "failed; 2 wrong request; 130 or 143 stopped by a signal, with a checkpoint.",
    )
    parser.add_argument(
        "recipe", help="recipe, a YAML file, relative to the current folder or to training/"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="values that replace those of the recipe, such as data.batch_size=8",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in train.run_dir")
    existing.add_argument("--overwrite", action="store_true", help="replace that run")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 training failed, 2 wrong request, 130 or 143 after a signal.

    3: done without the videos that could not be read. With several ranks 0 instead: torchrun would
    treat 3 as a crash and could restart the run.
    """
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with short_warnings():
            return _run(args)
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from training.support import lost

        if not lost.ends(error, _again(args)):
            raise
        return 1


def _run(args: argparse.Namespace) -> int:
    try:  # only now, so that --help need not wait for torch
        import av  # noqa: F401  without this line, its absence shows after the run directory exists
        import tensorboard  # noqa: F401

        from fastseq.video import TooManyBadVideos
        from training.evaluation.curve import best_checkpoint, step_evaluation
        from training.loop.labels import LabelledLoader, check_classes, write_classes
        from training.loop.optimizer import check_backbone_rate
        from training.loop.trainer import Trainer, check_loss
        from training.runs.folder import check_run_dir, open_run, restarted
        from training.runs.model import check_frozen, initial_model
        from training.support import distributed, lost
    except ImportError as error:
        print(f"error: {missing_extra(error, 'training')}", file=sys.stderr)
        return 2

    try:  # before the ranks meet: if one machine's ranks end, the others' could not connect
        distributed.check_restarts()
    except UserError as error:
        if distributed.local_rank() == 0:
            _complain(error)
        time.sleep(START_SPREAD)
        return 2
    distributed.start(_timeout(args))
    lost.listen()
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.ERROR)
    try:
        cfg, device = distributed.run_on_all(lambda: _configure(args))
        distributed.time_split(cfg.data.split_time)  # makes the groups, which all ranks do together
        run_dir = Path(cfg.train.run_dir)
        if restarted(run_dir):
            args.resume, args.overwrite = True, False
        if not args.dry_run:
            distributed.run_on_main(
                lambda: check_run_dir(cfg, run_dir, resume=args.resume, overwrite=args.overwrite)
            )
        check_loss(cfg, device)
        left_out = LeftOut()

        def assemble() -> Trainer:
            @functools.cache
            def parts() -> "tuple[VideoEncoder | VCLRModel, StepEvaluation | None]":
                made = initial_model(cfg)
                check_frozen(cfg, made)
                check_backbone_rate(cfg, made)
                return made, step_evaluation(cfg, made)

            loader = training_loader(
                cfg, device, model=lambda: parts()[0], dry_run=args.dry_run, left_out=left_out
            )
            if args.resume and isinstance(loader, LabelledLoader):
                check_classes(run_dir, loader.classes.names)
            model, evaluation = parts()
            return Trainer(cfg, model, loader, run_dir, evaluation, best_checkpoint(cfg, run_dir))

        trainer = distributed.run_on_all(assemble)
        if cfg.data.cache == "features" or cfg.data.split_time > 1:
            share_left_out(trainer.loader)
        if not args.dry_run:
            open_run(trainer, resume=args.resume)
            if isinstance(trainer.loader, LabelledLoader):
                names = trainer.loader.classes.names
                distributed.run_on_main(lambda: write_classes(run_dir, names))
    except (ValueError, OSError, TooManyBadVideos) as error:  # ValueError: UserError, models
        if error.speaks if hasattr(error, "speaks") else lost.speaks():
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
    except UserError as error:  # on all ranks
        if distributed.is_main():
            _complain(error)
        return 1
    except (TooManyBadVideos, OSError) as error:  # on this one, or on those that share clips
        if distributed.world_size() > 1:
            lost.announce()
        if getattr(error, "speaks", True):
            _complain(error)
            if isinstance(error, TooManyBadVideos):
                again = "once they can be read again, --resume continues the run"
                print(f"{again}; without them, start a new run", file=sys.stderr)
        if distributed.world_size() > 1:
            lost.wait_for_others()
        return 1
    for line in left_out.lines():
        logging.warning("%s", line)
    if received:
        if distributed.is_main():
            print(f"stopped; continue with --resume: {run_dir}", file=sys.stderr)
            print(f"  {_again(args)}", file=sys.stderr)
        return 128 + received
    early = f", stopped early at step {trainer.step}" if trainer.stopped_early else ""
    following = "next, python -m training.evaluate or training.report with"
    logging.info("done%s: %s %s", early, following, run_dir)
    return INCOMPLETE if left_out.videos and distributed.world_size() == 1 else 0


def _timeout(args: argparse.Namespace) -> timedelta | None:
    """train.timeout; None for torch's own, and for a recipe that `_configure` will refuse."""
    from training.support.distributed import launched_by_torchrun

    if not launched_by_torchrun():
        return None
    try:
        seconds = compose(args).train.timeout
    except (ValueError, OSError):
        return None
    return None if seconds is None else timedelta(seconds=seconds)


def _again(args: argparse.Namespace) -> str:
    """The command that continues the run."""
    from training.support.distributed import launcher

    words = shlex.join([args.recipe, *args.overrides, "--resume"])
    return f"{launcher()} -m training.train {words}"


def _complain(error: Exception) -> None:
    from fastseq.video import TooManyBadVideos
    from training.support.distributed import rank

    where = f"rank {rank()}: " if rank() else ""
    print(f"error: {where}{error}", file=sys.stderr)
    if isinstance(error, TooManyBadVideos):
        print("python -m training.prepare FOLDER --verify leaves such videos out", file=sys.stderr)


def _configure(args: argparse.Namespace) -> "tuple[DictConfig, torch.device]":
    from training.evaluation.curve import check_evaluation
    from training.loop.trainer import choose_device, set_deterministic
    from training.recipe.ranks import check_ranks
    from training.runs.writers import check_writers
    from training.support.distributed import world_size

    cfg = compose(args)
    check_evaluation(cfg)
    check_writers(cfg)
    check_ranks(cfg, world_size())
    set_deterministic(cfg)
    return cfg, choose_device(cfg)


def compose(args: argparse.Namespace) -> "DictConfig":
    """The configuration, with the run directory filled in and absolute paths."""
    from training.recipe.load import ConfigError, load_config, make_paths_absolute

    cfg = load_config(args.recipe, args.overrides)
    make_paths_absolute(cfg)
    if not cfg.data.folder:
        raise ConfigError("data.folder: not given; add data.folder=FOLDER with your videos")
    cfg.train.run_dir = cfg.train.run_dir or f"runs/{Path(args.recipe).stem}"
    return cfg


def training_loader(
    cfg: "DictConfig",
    device: "torch.device",
    *,
    model: "Callable[[], VideoEncoder | VCLRModel] | None" = None,
    dry_run: bool = False,
    left_out: LeftOut | None = None,
) -> "ClipLoader":
    """The loader of a run; sets ``left_out.in_index`` to the files that `prepare` left out.

    With a loss that learns from labels, sets its key ``classes``, and batches have labels, see
    `training.loop.labels`; if no other loss is used, only labelled videos are read.

    ``model`` returns the model; with data.cache=features, its features are cached. It is called
    when the folder and its index are known to be good, and before any video is decoded.
    """
    from omegaconf import OmegaConf

    import training.data.dataset
    from fastseq.video import ClipLoader, TooManyBadVideos
    from training.data.features import FeatureStore
    from training.data.folders import folders_of
    from training.data.selection import open_index, videos_of_split, warn_without_test
    from training.loop.labels import LabelledLoader, classes_of
    from training.recipe.load import ConfigError
    from training.recipe.losses import loss_terms
    from training.support.distributed import is_main, local_rank, rank, time_split, world_size

    index = open_index(cfg, check=local_rank() == 0)  # once on each machine
    if left_out is not None:
        left_out.in_index = len(index.bad)
    records = videos_of_split(index, cfg.data.train_split)
    warn_without_test(index, cfg.data.test_split)
    loader_type = ClipLoader
    if classes := classes_of(cfg, index, records):
        loader_type = functools.partial(LabelledLoader, classes=classes)
        if len(loss_terms(cfg.loss)) == 1:
            if len(classes.videos) < len(records):
                logging.info("the other videos are not read, because no other loss has a weight")
            records = classes.videos
    augmentation = OmegaConf.to_object(cfg.augmentation)
    network = None if model is None else model()
    store = None
    if cfg.data.cache == "features":
        check_features(cfg, network)
        store = FeatureStore(folders_of(cfg), network.to(device), cfg)
    try:
        loader, reason = training.data.dataset.open_loader(
            records,
            cfg.data,
            augmentation,
            cfg.train.seed,
            device=device,
            rank=rank(),
            world_size=world_size(),
            store=store,
            fill_cache=not dry_run,  # decodes every video
            progress=is_main(),
            loader_type=loader_type,
            split=time_split(cfg.data.split_time),
        )
    except (ImportError, RuntimeError) as error:
        if isinstance(error, TooManyBadVideos):
            raise
        raise ConfigError(f"data.engine: {error}") from error
    for name, why in loader.items.left_out:
        logging.warning("left out %s: %s", name, why)
    logging.info("videos are read by %s: %s", loader.engine.name, reason)
    return loader


def check_features(cfg: "DictConfig", model: "VideoEncoder | VCLRModel") -> None:
    """ConfigError unless the backbone's features stay the same throughout a run."""
    from training.recipe.load import ConfigError

    needs = "data.cache=features keeps the features of a frozen backbone for each frame: it "
    if cfg.data.clips == "tuples":
        raise ConfigError(f"{needs}needs data.clips other than tuples; or set data.cache=none")
    if cfg.model.encoder != "fve":
        raise ConfigError(
            f"{needs}needs model.encoder=fve, got {cfg.model.encoder}; or set data.cache=none"
        )
    if not model.backbone.all_frozen:
        raise ConfigError(
            f"{needs}needs model.train_from=none, got {cfg.model.train_from}; or set "
            "data.cache=none, or data.cache=ram to keep decoded frames"
        )


def share_left_out(loader: "ClipLoader") -> None:
    """Leave out, on every rank, the videos that any rank could not read: each read only a share,
    or ranks that share clips need the same."""
    from fastseq.video import VideoError
    from training.support.distributed import gather_objects

    for bad in gather_objects(dict(loader.bad)):
        for path, reason in bad.items():
            if path not in loader.bad:
                loader.set_aside(VideoError(path, reason))


if __name__ == "__main__":
    status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.support.distributed import leave

        leave(status)
    sys.exit(status)
