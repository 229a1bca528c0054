"""The comparison of losses: its table, and that it continues where it was."""

import json
import math
from pathlib import Path

import pytest

from training import compare, train
from training.config import load_config, loss_terms
from training.trainer import Trainer

SMALL = ["augmentation.size=32", "data.cache_side=36", "model.fc_size=16", "model.hidden_size=16"]
SMALL += ["model.embedding_size=16", "train.log_every=1", "data.num_frames=8"]
COUNTS = ["--train-videos", "2", "--test-videos", "2", "--steps", "2"]


def result(**metrics):
    return {"metrics": metrics}


def test_methods_differ_in_the_loss_and_its_clips_alone():
    configs = {
        name: load_config(compare.RECIPE, options) for name, options in compare.METHODS.items()
    }
    terms = {name: [term for term, *_ in loss_terms(cfg.loss)] for name, cfg in configs.items()}
    assert terms == {
        "untrained": ["scl"],
        "soft_dtw": ["soft_dtw"],
        "lav": ["lav"],
        "tcc": ["tcc"],
        "tcn": ["tcn"],
        "nearest": ["nearest"],
        "carl": ["scl"],
    }
    first = configs["carl"]
    for cfg in configs.values():
        assert cfg.model == first.model
        assert cfg.augmentation == first.augmentation
        assert (cfg.data.num_frames, cfg.data.batch_size) == (20, 4)
    # The baseline counts the frames that have a target in SCL.
    scl, nearest = configs["carl"].loss.scl, configs["nearest"].loss.nearest
    assert nearest.reach == pytest.approx(math.sqrt(206 * scl.variance), rel=1e-4)
    assert nearest.temperature == scl.temperature


def test_table_and_claims_by_hand():
    results = {
        "untrained": [result(pairwise_distance=1.0), result(pairwise_distance=0.8)],
        "soft_dtw": [result(pairwise_distance=0.1), result(pairwise_distance=0.6)],
        "lav": [result(pairwise_distance=1.2), result(pairwise_distance=1.0)],
        "nearest": [result(classification=0.5), result(classification=0.6)],
        "carl": [result(classification=0.6), result(classification=None)],
    }
    lines = compare.markdown(results).splitlines()
    assert lines[0].startswith("| | classification | progression | tau | AP@5 | spread |")
    assert "| Soft-DTW alone | - | - | - | - | 0.350 ± 0.354 | - |" in lines
    assert "| CARL (SCL) | 0.600 (1 of 2 seeds) | - | - | - | - | - |" in lines
    claims = "\n".join(compare.claims(results))
    assert "Soft-DTW alone below half of untrained: in 1 of 2 seeds (ratios 0.10, 0.75)" in claims
    assert "Soft-DTW alone below half of LAV: in 1 of 2 seeds (ratios 0.08, 0.60)" in claims
    assert "LAV above half of untrained: in 2 of 2 seeds (ratios 1.20, 1.25)" in claims
    assert "baseline in classification: in 1 of 2 seeds (+0.100, +nan)" in claims


def test_it_continues_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, *COUNTS, "--seeds", "1", "--methods", "soft_dtw,carl"]
    original = Trainer._train_step

    def interrupted(self, batch, rate):
        if self.cfg.loss.scl.weight and self.step == 1:
            raise KeyboardInterrupt
        return original(self, batch, rate)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    assert compare.main(arguments) == 130
    folder = Path("compare/seed_0")
    before = (folder / "soft_dtw/result.json").read_bytes()
    assert not (folder / "carl/result.json").exists()
    monkeypatch.setattr(Trainer, "_train_step", original)
    trained = []
    monkeypatch.setattr(
        train, "main", lambda argv, main=train.main: trained.append(argv) or main(argv)
    )
    capsys.readouterr()
    assert compare.main(arguments) == 0
    assert len(trained) == 1
    assert "Soft-DTW alone, seed 0: there already" in capsys.readouterr().out
    assert (folder / "soft_dtw/result.json").read_bytes() == before
    table = Path("compare/comparison.md").read_text()
    saved = json.loads((folder / "carl/result.json").read_text())["metrics"]
    row = next(line for line in table.splitlines() if line.startswith("| CARL"))
    assert f"| {saved['classification']:.3f} |" in row
    assert f"| {saved['pairwise_distance']:.3f} |" in row
    assert "| time index only | " in table

    assert compare.main([*arguments, "optim.lr=0.1"]) == 2
    assert "is the result of other values of optim.lr" in capsys.readouterr().err


def test_wrong_requests(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["optim.rate=1"]) == 2
    assert "unknown key 'optim.rate'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        compare.main(["--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main(["--methods", "carl,vclr"])
    assert "'vclr'; expected some of untrained, soft_dtw" in capsys.readouterr().err
