"""Supervised training: the classes of frames, the loss on them, and its head."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import numbers, same, weights
from test_objectives import clips
from two_ranks import SUPERVISED, batch_norms_at_rest, batch_of, configuration, gradient

from training import evaluate
from training.data.index import build_index
from training.loop.objectives import Objective
from training.models.heads import build_heads
from training.recipe.load import ConfigError, load_config
from training.runs.checkpoint import list_checkpoints
from training.runs.log import read_log
from training.runs.model import load_run
from training.support.command import UserError
from training.train import main, training_loader

CLASSES = {"swing": ["up", "top", "down"], "pour": ["lift", "tilt"]}
PHASES = {
    "a.mp4": [0] * 9 + [-1] * 3 + [1] * 9 + [2] * 9,
    "b.mp4": [0] * 4 + [1] * 4 + [2] * 4,
    "c.mp4": [0] * 3 + [1] * 3,
}
FIRST = {"a.mp4": 2, "b.mp4": 2, "c.mp4": 0}  # class of a video's phase 0: pour comes first
LEARN = ["tiny.yaml", "loss.classification.weight=1", "train.log_every=1", "train.steps=2"]


def write_labels(folder: Path, **more: dict) -> None:
    """Labels of the three videos; ``more``: video -> other keys, None = no labels."""
    videos = {
        name: {"action": "pour" if name == "c.mp4" else "swing", "phases": phases}
        | more.get(name[0], {})
        for name, phases in PHASES.items()
    }
    videos = {
        name: {key: value for key, value in entry.items() if value is not None}
        for name, entry in videos.items()
    }
    classes = {action: CLASSES[action] for action in ("pour", "swing")}
    (folder / "labels.json").write_text(json.dumps({"classes": classes, "videos": videos}))
    build_index(folder)


@pytest.fixture
def labelled(video_folder):
    write_labels(video_folder)
    return video_folder


def loader_of(*options):
    cfg = load_config("tiny.yaml", [*LEARN[1:], *options])
    return training_loader(cfg, torch.device("cpu")), cfg


# --- the loss -----------------------------------------------------------------------------------


def supervised(*options, classes=3):
    options = ["loss.scl.weight=0", "loss.classification.weight=1", *options]
    options.append(f"loss.classification.classes={classes}")
    cfg = load_config("recipes/carl.yaml", [*options, "model.embedding_size=5"])
    torch.manual_seed(0)
    return Objective(cfg.loss, build_heads(cfg).eval())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_the_labelled_frames(padded, smoothing):
    batch = clips(padded=padded)
    batch = dataclasses.replace(batch, labels=batch.steps % 4 - 1)
    objective = supervised(f"loss.classification.label_smoothing={smoothing}")
    value, values = objective(batch)
    linear = objective.heads["classification"][1].double()
    total = correct = count = 0.0
    for n, clip, t in torch.cartesian_prod(*map(torch.arange, batch.labels.shape)).tolist():
        label = batch.labels[n, clip, t].item()
        if label < 0 or (padded and not batch.valid[n, clip, t]):
            continue
        logits = linear.weight @ batch.h[n, clip, t].double() + linear.bias
        target = torch.full((3,), smoothing / 3, dtype=torch.float64)
        target[label] += 1 - smoothing
        total -= (target * logits.log_softmax(0)).sum().item()
        correct += logits.argmax().item() == label
        count += 1
    assert value.item() == pytest.approx(total / count, rel=1e-5)
    assert values["accuracy"].item() == pytest.approx(correct / count)
    assert list(values) == objective.names == ["classification", "accuracy"]


def test_it_is_the_loss_of_carl_code():
    # There: the cross-entropies of the frames with a label, weighted by the mask of real frames.
    batch = clips()
    labels = batch.steps % 4 - 1
    objective = supervised()
    value = objective(dataclasses.replace(batch, labels=labels))[0]
    logits = objective.heads["classification"](batch.h).flatten(0, 2)
    has = labels.flatten() >= 0
    mask = batch.valid.flatten().float()[has]
    losses = F.cross_entropy(logits[has], labels.flatten()[has], reduction="none")
    torch.testing.assert_close(value, (losses * mask).sum() / mask.sum())


def test_frames_without_labels_contribute_nothing():
    batch = clips()
    objective = supervised()
    none = dataclasses.replace(
        batch, h=batch.h.requires_grad_(), labels=-torch.ones_like(batch.steps)
    )
    value, _ = objective(none)
    value.backward()
    assert value.item() == 0
    for tensor in (none.h, *objective.heads.parameters()):
        assert not tensor.grad.any()


def test_parts_have_the_gradient_of_the_whole_batch(tmp_path):
    cfg = configuration(tmp_path, "loss.scl.weight=1", *SUPERVISED)
    parts = [batch_of(range(start, start + 2)) for start in range(0, 8, 2)]
    parts[1]["labels"][:] = -1
    whole = batch_of(range(8))
    whole["labels"][2:4] = -1
    once, split = (
        gradient(cfg, batches, prepare=batch_norms_at_rest) for batches in ([whole], parts)
    )
    torch.testing.assert_close(split["loss"], once["loss"])
    for name, value in once["gradient"].items():
        torch.testing.assert_close(split["gradient"][name], value)
    assert once["gradient"]["heads.classification.1.weight"].abs().max() > 1e-3


def test_the_accuracy_of_a_batch_without_labels_is_unknown(tmp_path):
    objective = supervised("loss.scl.weight=1")
    batches = [batch_of(range(2)), batch_of(range(2, 4))]
    for batch in batches:
        batch["labels"][:] = -1
    counts = torch.tensor([objective.counts(batch) for batch in batches], dtype=torch.float64)
    shares = objective.shares(counts, counts)
    assert objective.names == ["scl", "classification", "accuracy"]
    assert shares[:, 0].sum() == 1
    assert shares[:, 1].tolist() == [0, 0]
    assert shares[:, 2].isnan().all()


# --- the classes of frames ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["data.clips=videos"],
        ["data.cache=ram"],
        ["model.encoder=conv3d", "data.num_context=2", "data.context_stride=2"],
        ["data.cache=features", "model.train_from=none", "model.random_frozen=true"],
    ],
)
def test_labels_follow_the_frames(labelled, options):
    write_labels(labelled, a={"trim": [4, 25]})
    if "data.cache=features" in options:
        from training.runs.model import initial_model

        cfg = load_config("tiny.yaml", [*LEARN[1:], *options])
        loader = training_loader(cfg, torch.device("cpu"), model=lambda: initial_model(cfg))
    else:
        loader, cfg = loader_of("data.batch_size=2", *options)
    assert cfg.loss.classification.classes == 5
    assert loader.classes.names == [(a, p) for a in ("pour", "swing") for p in CLASSES[a]]
    seen = set()
    for batch in [batch for _ in range(3) for batch in loader]:
        assert batch["labels"].dtype == torch.int64
        for n, names in enumerate(batch["ids"]):
            clip_names = (names.split(" with ") * 2)[:2]
            for clip, name in enumerate(clip_names):
                seen.add(name)
                for step, label in zip(
                    batch["steps"][n, clip].tolist(), batch["labels"][n, clip].tolist(), strict=True
                ):
                    assert name != "a.mp4" or 4 <= step <= 25
                    phase = PHASES[name][step]
                    assert label == (phase + FIRST[name] if phase >= 0 else -1), (name, step)
    assert seen >= {"a.mp4", "b.mp4"}


def test_labels_of_synchronised_videos_are_those_of_their_frames(labelled):
    offsets = {"a.mp4": 0, "b.mp4": 10}
    write_labels(
        labelled, **{n[0]: {"sync": {"group": "g", "offset": k}} for n, k in offsets.items()}
    )
    loader, _ = loader_of("data.clips=synchronised", "data.num_frames=4", "data.batch_size=1")
    for batch in [batch for _ in range(4) for batch in loader]:
        for clip, name in enumerate(batch["ids"][0].split(" with ")):
            phases = [PHASES[name][k - offsets[name]] for k in batch["steps"][0, clip].tolist()]
            expected = [phase + FIRST[name] if phase >= 0 else -1 for phase in phases]
            assert batch["labels"][0, clip].tolist() == expected


def test_labels_of_several_folders(labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "more")
    build_index(tmp_path / "more")
    loader, _ = loader_of(f"data.folder=[{labelled},{tmp_path / 'more'}]")
    assert len(loader.classes.videos) == 6
    for batch in loader:
        for n, name in enumerate(batch["ids"]):
            phases = torch.tensor(PHASES[name.partition("/")[2]])[batch["steps"][n]]
            expected = torch.where(phases < 0, -1, phases + FIRST[name.partition("/")[2]])
            assert torch.equal(batch["labels"][n], expected)


def test_a_share_of_the_labelled_videos_of_each_action(labelled):
    def used(*options):
        loader, _ = loader_of(*(f"loss.classification.{one}" for one in options))
        return [video.id for video in loader.items.videos]

    assert used() == ["a.mp4", "b.mp4", "c.mp4"]
    assert used("label_share=0.6") == ["a.mp4", "c.mp4"]  # 1 of 2, and at least 1 of 1
    assert used("label_share=0.01") == ["a.mp4", "c.mp4"]
    assert used("label_videos=1") == ["a.mp4", "c.mp4"]
    assert used("label_videos=7") == ["a.mp4", "b.mp4", "c.mp4"]
    write_labels(labelled, a={"phases": None}, b={"phases": [-1] * 12})
    assert used() == ["c.mp4"]
    # With another loss the other videos are read too, without labels.
    loader, cfg = loader_of("loss.scl.weight=1", "data.batch_size=3")
    assert cfg.loss.classification.classes == 2
    for batch in loader:
        labels = {name: batch["labels"][n] for n, name in enumerate(batch["ids"])}
        assert (labels["a.mp4"] == -1).all()
        assert (labels["c.mp4"] >= 0).all()
    with pytest.raises(ConfigError, match=r"label_videos is 2 and label_share 0\.5; set one"):
        load_config(
            "tiny.yaml",
            [
                *LEARN[1:2],
                "loss.classification.label_videos=2",
                "loss.classification.label_share=.5",
            ],
        )


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_knows_its_classes(labelled):
    assert main([*LEARN, "train.run_dir=run"]) == 0
    names = json.loads(Path("run/classes.json").read_text())["classes"]
    assert names == [[action, phase] for action in ("pour", "swing") for phase in CLASSES[action]]
    model, cfg = load_run("run")
    assert cfg.loss.classification.classes == 5
    assert model.heads["classification"][1].weight.shape == (5, 16)
    untrained = load_run("run", untrained=True)[0]
    assert not torch.equal(model.embedding.weight, untrained.embedding.weight)
    assert all(0 <= line["accuracy"] <= 1 for line in read_log("run"))
    assert main([*LEARN, "--dry-run"]) == 0
    assert not load_run_heads("loss.scl.weight=1")


def load_run_heads(*options):
    """The heads of the models of other losses."""
    return build_heads(load_config("tiny.yaml", options))


def test_a_resumed_run_equals_the_whole_one(labelled):
    options = ["train.steps=4", "train.checkpoint_every=2", "loss.classification.dropout=0.5"]
    assert main([*LEARN, *options, "train.run_dir=whole"]) == 0
    shutil.copytree("whole", "cut")
    list_checkpoints("cut/checkpoints")[-1].unlink()
    again = [*LEARN, *options, "train.run_dir=cut", "--resume"]
    assert main(again) == 0
    assert same(weights("cut"), weights("whole"))
    assert numbers("cut") == numbers("whole")


def test_labels_that_changed_end_a_resume(labelled, capsys):
    assert main([*LEARN, "train.run_dir=run"]) == 0
    changed = json.loads((labelled / "labels.json").read_text())
    changed["classes"]["pour"] = ["tilt", "lift"]
    (labelled / "labels.json").write_text(json.dumps(changed))
    build_index(labelled)
    before = Path("run/config.yaml").read_bytes()
    capsys.readouterr()
    assert main([*LEARN, "train.run_dir=run", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "run was trained with the classes pour: lift, pour: tilt" in error
    assert "the labels now have pour: tilt, pour: lift" in error
    assert len(error.splitlines()) == 1
    assert Path("run/config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (
            {name: {"phases": None} for name in "abc"},
            [],
            "none of the 3 videos of the split 'train' has phase labels",
        ),
        ({}, ["loss.classification.classes=4"], "got 4, the labels of the training videos have 5"),
        ({}, ["data.clips=tuples"], "data.clips=tuples works only with loss.vclr"),
        ({}, ["loss.vclr.weight=1"], "loss.vclr cannot be combined with loss.classification"),
        ({}, ["loss.classification.label_share=0"], "label_share: expected more than 0"),
        ({}, ["loss.classification.dropout=1"], "dropout: expected at most 0.99"),
        (
            {},
            ["loss.classification.weight=null", "loss.classification.label_share=0.5"],
            "label_share is 0.5, but no label is used: set loss.classification.weight",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(labelled, more, options, message, capsys):
    write_labels(labelled, **more)
    assert main([*LEARN, "train.run_dir=run", *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not Path("run").exists()


def test_the_number_of_classes_must_be_known(video_folder):
    cfg = load_config("tiny.yaml", LEARN[1:])
    with pytest.raises(UserError, match="classes is null, so the classifier's size is unknown"):
        build_heads(cfg)


def test_evaluation_warns_of_labels_that_the_training_did_not_see(labelled, capsys):
    share = ["loss.classification.label_share=0.5", "train.run_dir=run"]
    assert main([*LEARN, *share]) == 0
    options = ["run", "--split", "train", "--metrics", "classification"]
    for fractions, warned in ((["1"], True), (["1", "0.5"], False)):
        capsys.readouterr()
        assert evaluate.main([*options, "--fractions", *fractions]) == 0
        result = json.loads(Path("run/evaluation_train.json").read_text())
        assert ("--fractions 0.5 uses the same share" in capsys.readouterr().err) == warned
        assert ("a share 0.5 of the labelled videos" in result.get("label_share", "")) == warned


def test_fine_tuning_keeps_a_head_that_fits(labelled, caplog):
    caplog.set_level("INFO")
    assert main([*LEARN, "train.run_dir=first"]) == 0
    assert main(["tiny.yaml", "train.steps=1", "train.run_dir=scl"]) == 0
    start = ["model.weights_parts=all", "optim.lr=0", "train.steps=1"]

    def tuned(weights_of, *options):
        caplog.clear()
        run = f"train.run_dir=run{len(list(Path().iterdir()))}"
        assert main([*LEARN, run, f"model.weights={weights_of}", *start, *options]) == 0
        return weights(run.partition("=")[2])

    first = weights("first")
    assert torch.equal(
        tuned("first")["heads.classification.1.weight"], first["heads.classification.1.weight"]
    )
    assert "head of" not in caplog.text
    fewer = tuned("first", "data.action=swing")
    assert "head of loss.classification: starts from random values" in caplog.text
    assert fewer["heads.classification.1.weight"].shape == (3, 16)
    assert torch.equal(fewer["embedding.weight"], first["embedding.weight"])
    added = tuned("scl")
    assert "head of loss.classification: starts from random values" in caplog.text
    assert torch.equal(added["embedding.weight"], weights("scl")["embedding.weight"])
    dropped = tuned("first", "loss.classification.weight=0", "loss.scl.weight=1")
    assert not any(name.startswith("heads.") for name in dropped)
    assert torch.equal(dropped["embedding.weight"], first["embedding.weight"])


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_or_end_to_end(labelled, frozen):
    options = ["model.train_from=none", "model.random_frozen=true"] if frozen else []
    assert main([*LEARN, *options, "train.run_dir=run"]) == 0
    trained = load_run("run")[0].state_dict()
    before = load_run("run", untrained=True)[0].state_dict()
    moved = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert "heads.classification.1.weight" in moved
    assert "embedding.weight" in moved
    assert any(name.startswith("backbone.") for name in moved) is not frozen
    assert not any(name.startswith("projection.") for name in moved)


@pytest.mark.parametrize("lav", [False, True])
def test_the_recipes_train(labelled, lav):
    small = [
        "model.backbone=small_cnn",
        "model.backbone_to=last",
        "augmentation.size=16",
        "data.num_frames=8",
        "data.cache_side=18",
        "data.workers=0",
        "data.engine=pyav",
        "model.conv3d_size=8",
        "model.fc_size=16",
        "model.hidden_size=16",
        "model.ff_size=32",
        "train.epochs=null",
        "train.steps=1",
        "train.log_every=1",
    ]
    recipe = ["recipes/supervised.yaml"]
    if lav:
        recipe = ["recipes/lav.yaml", "data.clips=views", "loss.lav.weight=0"]
        recipe += ["loss.classification.weight=1"]
    assert main([*recipe, f"data.folder={labelled}", "train.run_dir=run", *small]) == 0
    assert 0 < read_log("run")[0]["loss"] < 10


def test_training_learns_the_labels(labelled):
    write_labels(labelled, b={"split": "test"}, c={"phases": None})
    options = ["data.cache=ram", "augmentation.jitter=0", "augmentation.flip=0"]
    options += ["augmentation.blur=0", "augmentation.grayscale=0", "train.steps=40"]
    options += ["optim.lr=3e-3", "data.batch_size=1", "model.layers=0"]
    assert main([*LEARN, *options, "train.run_dir=run"]) == 0
    accuracies = [line["accuracy"] for line in read_log("run")]
    first, last = sum(accuracies[:8]) / 8, sum(accuracies[-8:]) / 8
    assert first < 0.5 < 0.7 < last
