"""loss.scl.target: from the recipe to the loss."""

import pytest
import torch

import fastseq
from training.loop.objectives import Clips, Objective
from training.recipe.load import ConfigError, load_config


def test_the_recipe_sets_the_target(recipe):
    cfg = load_config(recipe, ["loss.scl.target=sigmoid", "loss.scl.variance=4"])
    z = torch.randn(2, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(9).expand(2, 2, 9)
    batch = Clips(z, z, steps, None, torch.full((2, 2), 9))
    want = fastseq.scl_loss(
        z[:, 0], z[:, 1], steps[:, 0], steps[:, 1], target="sigmoid", variance=4.0
    )
    assert Objective(cfg.loss)(batch)[0] == want


def test_an_unknown_target_is_refused(recipe):
    with pytest.raises(ConfigError, match=r"loss\.scl\.target.*cauchy"):
        load_config(recipe, ["loss.scl.target=cauchy"])
