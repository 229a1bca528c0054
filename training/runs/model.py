"""A run directory and how to get a model back from it.

RUN/config.yaml, RUN/environment.json, RUN/log.jsonl, RUN/tensorboard/, RUN/checkpoints/
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from training.models import VCLRModel, VideoEncoder, build_model
from training.recipe.load import load_config
from training.runs.checkpoint import list_checkpoints, load_latest, load_weights, read_manifest


def initial_model(cfg: DictConfig) -> VideoEncoder | VCLRModel:
    """The model as it is before the first step, a function of the configuration alone.

    The caller's random state is left as it was (that of the CPU; nothing is drawn on a GPU).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        return build_model(cfg)


def load_run(
    run_dir: str | Path, *, untrained: bool = False
) -> tuple[VideoEncoder | VCLRModel, DictConfig]:
    """Model of a run on the CPU, in eval mode, and the run's full configuration.

    Args:
        untrained: give the weights from before the first step instead of the newest checkpoint's.

    Raises:
        FileNotFoundError: not a run directory, or no checkpoint in it yet.
        CheckpointError: no checkpoint can be read, or the weights do not fit the configuration.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run_dir} is not a run: there is no config.yaml in it. Runs are written by "
            "python -m training.train"
        )
    cfg = load_config(run_dir / "config.yaml")
    if untrained:
        return initial_model(cfg).eval(), cfg
    state = load_latest(run_dir / "checkpoints", keys=["model"])
    if state is None:
        raise FileNotFoundError(f"{run_dir} has no checkpoint yet")
    model = build_model(cfg, load_weights=False)
    load_weights(model, state, run_dir / "checkpoints")
    return model.eval(), cfg


def weights_name(run_dir: str | Path) -> str:
    """Tells one set of weights from another: the newest checkpoint's name and SHA-256."""
    folder = Path(run_dir) / "checkpoints"
    manifest = read_manifest(folder)
    names = [path.name for path in list_checkpoints(folder)[-1:]]
    return " ".join(f"{name} {manifest.get(name, {}).get('sha256', '')}" for name in names)
