"""From a run directory to functions that embed whole videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.support.command import UserError

if TYPE_CHECKING:
    import torch

UNTRAINED = "untrained"
TRAINED = "trained"
UNTRAINED_WITHOUT_POSITIONS = "untrained, positions off"
TRAINED_WITHOUT_POSITIONS = "trained, positions off"

ROW_DEFINITIONS = {
    UNTRAINED: "The same network and seed before the first training step.",
    TRAINED: "The network after training.",
    UNTRAINED_WITHOUT_POSITIONS: "The untrained network without its positional encoding.",
    TRAINED_WITHOUT_POSITIONS: "The trained network, positional encoding left out at test time.",
}


def make_encoder(model: Any, *, use_positions: bool = True) -> Callable[[Any], Any]:
    """A function from uint8 frames (1, T, 3, S, S) to embeddings (1, T, E), without gradients.

    ``use_positions=False`` leaves the positional encoding out, which shows how much of a result
    comes from the pictures alone.
    """
    import torch

    device = next(model.parameters()).device

    def encode(frames: torch.Tensor) -> torch.Tensor:
        before = model.use_positions
        model.use_positions = before and use_positions
        try:
            with torch.inference_mode():
                return model.encode(frames.to(device))
        finally:
            model.use_positions = before

    return encode


def load_encoder(run: str | Path) -> tuple[Callable[[Any], Any], Any]:
    """The trained encoder of a run, on the GPU when there is one, and the run's configuration."""
    model, cfg = _load(run, untrained=False)
    return make_encoder(model), cfg


def load_compared_encoders(run: str | Path) -> tuple[dict[str, Callable[[Any], Any]], Any]:
    """Untrained and trained encoders of a run, with and without positions if any, its config."""
    untrained, cfg = _load(run, untrained=True)
    trained, _ = _load(run, untrained=False)
    encoders = {UNTRAINED: make_encoder(untrained), TRAINED: make_encoder(trained)}
    if trained.use_positions:
        encoders[UNTRAINED_WITHOUT_POSITIONS] = make_encoder(untrained, use_positions=False)
        encoders[TRAINED_WITHOUT_POSITIONS] = make_encoder(trained, use_positions=False)
    return encoders, cfg


def _load(run: str | Path, *, untrained: bool) -> tuple[Any, Any]:
    import torch

    from training.runs.model import load_run

    try:
        model, cfg = load_run(run, untrained=untrained)
    except ValueError as error:  # UserError, and options that do not fit together
        raise UserError(f"{run}: {error}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), cfg
