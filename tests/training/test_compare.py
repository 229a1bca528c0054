"""The comparison of losses: its table, and that it resumes where it stopped."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from processes import server

from training import compare, train
from training.loop.trainer import Trainer
from training.recipe.load import load_config, loss_terms
from training.studies import comparison_table, suites

SMALL = ["augmentation.size=32", "data.cache_side=36", "model.fc_size=16", "model.hidden_size=16"]
SMALL += ["model.embedding_size=16", "train.log_every=1", "data.num_frames=8"]
COUNTS = ["--train-videos", "2", "--test-videos", "2", "--steps", "2"]


def result(**metrics):
    return {"metrics": metrics}


def test_methods_differ_in_the_loss_and_its_clips_alone():
    configs = {
        name: load_config(suites.FRAMES_RECIPE, options)
        for name, options in suites.FRAMES_METHODS.items()
    }
    terms = {name: [term for term, *_ in loss_terms(cfg.loss)] for name, cfg in configs.items()}
    assert terms == {
        "untrained": ["scl"],
        "soft_dtw": ["soft_dtw"],
        "soft_dtw_idm": ["soft_dtw", "contrastive_idm"],
        "soft_dtw_sfa": ["soft_dtw", "contrastive_idm"],
        "lav": ["lav"],
        "lav_tcc": ["lav", "tcc"],
        "d2tw": ["soft_dtw"],
        "gta": ["gta"],
        "ae2": ["ae2"],
        "drop_dtw": ["drop_dtw"],
        "drop_dtw_idm": ["contrastive_idm", "drop_dtw"],
        "vava": ["vava"],
        "lrprop": ["lav", "lrprop"],
        "lrprop_alone": ["lrprop"],
        "tcc": ["tcc"],
        "tcn": ["tcn"],
        "sal": ["sal"],
        "speednet": ["speed"],
        "nearest": ["nearest"],
        "carl_laplace": ["scl"],
        "carl_sigmoid": ["scl"],
        "carl_box": ["scl"],
        "carl": ["scl"],
    }
    first = configs["carl"]
    assert (configs["speednet"].model.layers, first.model.layers) == (1, 0)
    configs["speednet"].model.layers = 0
    for cfg in configs.values():
        assert cfg.model == first.model
        assert cfg.augmentation == first.augmentation
        assert (cfg.data.num_frames, cfg.data.batch_size) == (20, 4)
    # The regularisers of LAV's Table 1 differ only in their form.
    lav = configs["lav"].loss.lav
    for form in ("idm", "sfa"):
        idm = configs[f"soft_dtw_{form}"].loss.contrastive_idm
        assert (idm.form, idm.weight, idm.weights) == (form, lav.alpha, lav.form)
        assert (idm.window, idm.margin, idm.normalize) == (lav.window, lav.margin, lav.normalize)
        assert configs[f"soft_dtw_{form}"].loss.soft_dtw.gamma == lav.gamma
    # LAV + TCC as in its recipe.
    assert configs["lav_tcc"].loss == load_config("recipes/lav_tcc.yaml").loss
    assert comparison_table.FRAMES_TITLES.keys() == {
        comparison_table.TIME_INDEX_METHOD,
        *suites.FRAMES_METHODS,
    }
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
    lines = comparison_table.frames_table(results).splitlines()
    assert lines[0].startswith("| | classification | progression | tau | AP@5 | spread |")
    assert "| Soft-DTW alone | - | - | - | - | 0.350 ± 0.354 | - |" in lines
    assert "| CARL (SCL) | 0.600 (1 of 2 seeds) | - | - | - | - | - |" in lines
    claims = "\n".join(comparison_table.frames_claims(results))
    assert "Soft-DTW alone below half of untrained: in 1 of 2 seeds (ratios 0.10, 0.75)" in claims
    assert "Soft-DTW alone below half of LAV: in 1 of 2 seeds (ratios 0.08, 0.60)" in claims
    assert "LAV above half of untrained: in 2 of 2 seeds (ratios 1.20, 1.25)" in claims
    text = "CARL (SCL) above contrastive baseline in classification: in 1 of 2 seeds (+0.100, +nan)"
    assert text in claims
    assert "IDM" not in claims
    results["soft_dtw_idm"] = [result(ap_at_5=0.1), result(ap_at_5=0.4)]
    results["lav"] = [result(ap_at_5=0.2), result(ap_at_5=0.3)]
    text = "LAV above Soft-DTW + IDM in AP@5: in 1 of 2 seeds (+0.100, -0.100)"
    assert text in "\n".join(comparison_table.frames_claims(results))


def test_it_continues_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, *COUNTS, "--seeds", "1", "--methods", "soft_dtw,carl", "--jobs", "1"]
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

    (folder / "carl/result.json").write_text("{")
    assert compare.main(arguments) == 2
    assert "carl/result.json is not JSON" in capsys.readouterr().err


@pytest.mark.process
def test_processes_give_the_same_as_one_after_another(tmp_path, monkeypatch, capsys):
    """Copies of one process, equivalent to new ones but without importing torch again."""
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, *COUNTS, "--seeds", "1", "--methods", "soft_dtw_sfa,lav_tcc"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert compare.main([*arguments, "--jobs", "1", "--out", "one"]) == 0
    finally:
        torch.set_num_threads(threads)
    kinds = []
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda kind: kinds.append(kind) or server())
        assert compare.main([*arguments, "--jobs", "2", "--out", "two"]) == 0
    assert set(kinds) == {"spawn"}
    out = capsys.readouterr().out
    assert "(1 of 2)" in out
    assert "(2 of 2)" in out
    one, two = (Path(out, "comparison.md").read_text() for out in ("one", "two"))
    assert one == two
    assert "steps 0 to 2" in Path("two/seed_0/lav_tcc.log").read_text()


@pytest.mark.process
def test_a_failure_is_told_with_the_end_of_its_log(tmp_path, monkeypatch, capsys):
    """In a new process, as for users."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad/seed_0").mkdir(parents=True)
    (tmp_path / "bad/seed_0/soft_dtw_sfa").write_text("in the way")
    bad = [*SMALL, *COUNTS, "--seeds", "1", "--methods", "soft_dtw_sfa", "--jobs", "2"]
    bad += ["--out", "bad"]
    assert compare.main(bad) == 1
    error = capsys.readouterr().err
    assert "Soft-DTW + SFA, seed 0 failed; the end of bad/seed_0/soft_dtw_sfa.log" in error
    assert "NotADirectoryError" in error  # the command got to the run itself
    assert not Path("bad/comparison.md").exists()


def test_wrong_requests(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["optim.rate=1"]) == 2
    assert "unknown key 'optim.rate'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        compare.main(["--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main(["--jobs", "0"])
    assert "--jobs must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main(["--methods", "carl,vclr"])
    assert "'vclr'; expected some of untrained, soft_dtw" in capsys.readouterr().err
