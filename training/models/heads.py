"""Heads that a loss trains on top of the embeddings, one for each such loss of a recipe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from training.support.command import UserError

if TYPE_CHECKING:
    from training.recipe.schema import Config


def build_heads(config: "Config", *, classes: int | None = None) -> nn.ModuleDict:
    """The heads of the losses that have a weight, by the name of the loss.

    A head maps embeddings h (..., ``model.embedding_size``) to logits (..., classes); that of
    ``sal`` maps three concatenated embeddings.

    Args:
        classes: number of classes if ``loss.classification.classes`` is null.

    Raises:
        UserError: the classification loss has a weight, but the number of classes is unknown.
    """
    heads = nn.ModuleDict()
    for name, build in HEADS.items():
        options = getattr(config.loss, name)
        if options.weight:
            heads[name] = build(options, config.model.embedding_size, classes)
    return heads


def apply_head(head: nn.Module, h: Tensor) -> Tensor:
    """``head(h)`` in the precision of the head's parameters, whatever that of h."""
    return head(h.to(next(head.parameters()).dtype))


def _classification(options: Any, embedding: int, classes: int | None) -> nn.Module:
    """CARL_code's Classifier: dropout, then one linear layer."""
    classes = options.classes or classes
    if classes is None:
        raise UserError(
            "loss.classification.classes is null, so the classifier's size is unknown: expected "
            "the number of classes. python -m training.train counts them in the labels; elsewhere "
            "set loss.classification.classes"
        )
    return nn.Sequential(nn.Dropout(options.dropout), nn.Linear(embedding, classes))


def sal_head(embedding: int) -> nn.Module:
    """Three concatenated embeddings (..., 3E) to two logits (TCC's released FC_LAYERS)."""
    return nn.Sequential(
        nn.Linear(3 * embedding, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def speed_head(embedding: int) -> nn.Module:
    """A clip's mean embedding (..., E) to the logit of playing fast (SpeedNet, Fig. 3)."""
    return nn.Linear(embedding, 1)


# Loss -> function of its recipe section, the size of h, and the number of classes.
HEADS: dict[str, Callable[[Any, int, int | None], nn.Module]] = {
    "classification": _classification,
    "sal": lambda options, embedding, classes: sal_head(embedding),
    "speed": lambda options, embedding, classes: speed_head(embedding),
}
