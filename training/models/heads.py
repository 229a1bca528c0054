"""Heads that a loss trains on top of the embeddings, one for each such loss of a recipe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from training.support.command import UserError

if TYPE_CHECKING:
    from training.recipe.schema import Config


def build_heads(config: "Config", *, classes: int | None = None) -> nn.ModuleDict:
    """The heads of the losses that have a weight, by the name of the loss.

    A head maps embeddings h (..., ``model.embedding_size``) to logits (..., classes).

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


# Loss -> function of its recipe section, the size of h, and the number of classes.
HEADS: dict[str, Callable[[Any, int, int | None], nn.Module]] = {
    "classification": _classification,
}
