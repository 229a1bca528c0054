"""Train an encoder on a folder of videos: python -m training.train RECIPE [key=value ...]."""

import argparse
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from fastseq.video import ClipLoader
    from training.models import VideoEncoder
    from training.trainer import Trainer

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
    *(f"loss.{name}.backend" for name in ("scl", "soft_dtw", "lav", "tcc")),
    "train.run_dir",
    "train.device",
    "train.checkpointing",
    "train.compile",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_nonfinite",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train an encoder on videos prepared with python -m training.prepare.",
        epilog="Example: python -m training.train recipes/carl_demo.yaml data.folder=videos "
        "train.run_dir=runs/first",
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
    """Exit status: 0 done, 1 training failed, 2 wrong request, 130 or 143 after a signal."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(args)
    except KeyboardInterrupt:  # before the first step, or for the second time
        print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    try:  # only now, so that --help need not wait for torch
        from fastseq.video import TooManyBadVideos
        from training.checkpoint import CheckpointError
        from training.config import ConfigError
        from training.run import initial_model
        from training.trainer import NonFiniteError, Trainer, check_loss, choose_device
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("fastseq", "training"):
            raise
        print(f'error: {error}; training needs: pip install "fastseq[train]"', file=sys.stderr)
        return 2

    try:
        cfg = compose(args)
        run_dir = Path(cfg.train.run_dir)
        if not args.dry_run:
            check_run_dir(cfg, run_dir, args)
        device = choose_device(cfg)
        check_loss(cfg, device)
        model = initial_model(cfg)
        loader = open_loader(cfg, device, dry_run=args.dry_run)  # last: may decode everything
        trainer = Trainer(cfg, model, loader, run_dir)
        if not args.dry_run:
            open_run(trainer, resume=args.resume)
    except (ConfigError, OSError, ValueError, TooManyBadVideos, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print(describe(trainer))
        return 0
    try:
        received = trainer.run()
    except (NonFiniteError, TooManyBadVideos, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if received:
        print(f"stopped; continue with --resume: {run_dir}", file=sys.stderr)
        return 128 + received
    return 0


def compose(args: argparse.Namespace) -> "DictConfig":
    """The configuration, with the run directory filled in and paths that hold from anywhere."""
    from training.config import ConfigError, load_config

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

    from training.config import ConfigError, differences, load_config

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
    cfg: "DictConfig", device: "torch.device", *, dry_run: bool = False
) -> "ClipLoader":
    from omegaconf import OmegaConf

    import training.data.dataset
    from fastseq.video import TooManyBadVideos
    from training.config import ConfigError
    from training.data.index import load_index

    index = load_index(cfg.data.folder)
    records = [record for record in index.videos if record.split == cfg.data.train_split]
    if not records:
        if not index.videos:
            raise ConfigError(f"data.folder: {cfg.data.folder} has no video that can be read")
        splits = sorted({record.split for record in index.videos})
        raise ConfigError(
            f"data.train_split: no video of split {cfg.data.train_split!r} in {cfg.data.folder}, "
            f"only of {', '.join(splits)}"
        )
    augmentation = OmegaConf.to_object(cfg.augmentation)
    # A cache in memory is filled by decoding everything, which a dry run need not wait for.
    data = OmegaConf.merge(cfg.data, {"cache": "none"}) if dry_run else cfg.data
    try:
        loader, reason = training.data.dataset.open_loader(
            records, data, augmentation, cfg.train.seed, device=device
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

    cfg, run_dir = trainer.cfg, trainer.run_dir
    torch.manual_seed(cfg.train.seed)
    resumed = resume and trainer.resume()
    run_dir.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in RUN_CONTENTS:
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
    (run_dir / "environment.json").write_text(json.dumps(_environment(trainer), indent=2))
    if resume and not resumed:
        logging.info("no checkpoint in %s yet: starting at step 0", run_dir)
    logging.info(
        "%s: %d videos, steps %d to %d on %s",
        run_dir,
        len(trainer.loader.items),
        trainer.step,
        trainer.steps,
        trainer.device,
    )


def describe(trainer: "Trainer") -> str:
    """Sizes of the model, the data and the memory that training takes, for --dry-run."""
    cfg, model, items = trainer.cfg, trainer.model, trainer.loader.items
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    videos = min(cfg.data.batch_size, len(items))
    frames = videos * 2 * cfg.data.num_frames * cfg.data.num_context
    what = "2 views" if cfg.data.clips == "views" else "2 videos"
    context = f" x {cfg.data.num_context} with context" if cfg.data.num_context > 1 else ""
    unit = "videos" if cfg.data.clips == "views" else "pairs"
    weights = 4 * (total + 3 * trained)  # fp32 weights; gradients and Adam's two moments
    activations = frames * saved_bytes_per_frame(model.cpu(), cfg.augmentation.size, trainer.bf16)
    return "\n".join(
        [
            f"model        {cfg.model.backbone}: {total:,} parameters, {trained:,} trained",
            f"data         {len(items)} videos in split {cfg.data.train_split!r}, "
            f"{trainer.epoch_steps} steps an epoch, {trainer.steps} steps in all",
            f"step         {videos} {unit} x {what} x {cfg.data.num_frames} frames{context} = "
            f"{frames} frames of {cfg.augmentation.size} px",
            f"memory       about {_size(weights + activations)}: {_size(weights)} for weights, "
            f"gradients and Adam, {_size(activations)} kept for backward",
            f"runs on      {trainer.device}, {'bf16' if trainer.bf16 else 'fp32'}",
            f"writes to    {cfg.train.run_dir}",
        ]
    )


def saved_bytes_per_frame(model: "VideoEncoder", size: int, bf16: bool) -> float:
    """Memory autograd keeps per frame, measured on a few frames on the CPU."""
    few, more = 4, 12  # the difference leaves out what does not grow with the frames
    return (_saved_bytes(model, more, size, bf16) - _saved_bytes(model, few, size, bf16)) / (
        more - few
    )


def _saved_bytes(model: "VideoEncoder", frames: int, size: int, bf16: bool) -> int:
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        context = getattr(model, "num_context", 1)
        shape = (1, frames // context, *([context] if context > 1 else []), 3, size, size)
        z = model(torch.zeros(shape, dtype=torch.uint8))
    del z  # holds the graph, and so every counted storage, until here
    return sum(kept.values())


def _environment(trainer: "Trainer") -> dict[str, Any]:
    import torch

    import fastseq

    device = trainer.device
    return {
        "fastseq": fastseq.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": "bf16" if trainer.bf16 else "fp32",
        "threads": torch.get_num_threads(),
    }


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
