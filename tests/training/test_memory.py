"""training.memory: its measurements, its conclusions and its errors."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import vclr_cases
from processes import launch, measure, said, wait
from runs import RECIPE

import training.loop.step
from training import memory
from training.loop.pair_step import PairStep
from training.models import CarlModel
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.studies import memory_fit, memory_step

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory of a CPU is read from /proc")


def run_of(way: str, frames: int, peak: float, **more) -> dict:
    parts = dict.fromkeys(memory_step.PARTS, 10**6)
    where = {"device": "cpu", "precision": "fp32", "threads": 1, "torch": "2"}
    measured = {"peak": peak, "parts": parts, "model": 10**9, "seconds": 1.0}
    return {"way": way, "frames": frames} | measured | where | more


# The whole command


def in_a_copy(command: list[str], *, input: str, env: dict[str, str], **_) -> SimpleNamespace:
    """Replaces subprocess.run: runs a step in a child process that need not import torch."""
    assert command == [sys.executable, "-m", "training.studies.memory_step"]
    assert env.items() >= memory.MALLOC.items()  # the server of the copies has it too
    (process,) = launch(measure, input)
    (status,) = wait([process])
    text = said(process)
    return SimpleNamespace(returncode=status, stdout=text.strip().rpartition("\n")[2], stderr=text)


@linux
@pytest.mark.process
def test_memory_grows_linearly_and_slower_than_the_plain_way(tmp_path, monkeypatch, capsys):
    """A small backbone with a narrow head, so that the two ways differ in the backbone's values."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", in_a_copy)
    options = ["data.batch_size=1", "model.backbone=small_cnn", "augmentation.size=32"]
    options += [
        "model.train_from=all",
        "model.fc_size=32",
        "model.hidden_size=32",
        "model.ff_size=32",
        "model.layers=1",
    ]
    # Peaks vary by 2 MB from run to run: over 960 frames this is 2 kB per frame, over 240 it is 8.
    command = ["recipes/carl.yaml", *options, "--frames", "240,1200", "--plain"]
    assert memory.main([*command, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    peaks = {(run["way"], run["frames"]): run["peak"] for run in result["runs"]}
    assert result["slope_ratio"] > 4, peaks
    assert peaks["recipe", 1200] < peaks["plain", 1200]
    # Only the frames have to stay in memory, plus room for the head; the first convolution and its
    # batch norm alone would be ten times as much.
    for_sure = 2 * 3 * 32 * 32
    assert for_sure < result["fits"]["recipe"]["b"] < 5 * for_sure
    parts = next(run["parts"] for run in result["runs"] if run["frames"] == 1200)
    assert parts["frames"] == pytest.approx(1200 * 2 * 3 * 32 * 32, rel=0.2)
    assert parts["layer4"] < 2 * parts["frames"]  # if kept, it would be over 20 times as much
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert "plain / recipe, by b:" in out
    assert "two lengths" in out  # no R^2 of them


@linux
@pytest.mark.process
def test_a_step_in_a_process_of_its_own(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    asked = {"recipe": str(tmp_path / "tiny.yaml"), "overrides": ["data.num_frames=6"]}
    asked |= {"frames": 6, "ranks": 1}
    measured = memory.measure(asked)
    assert measured["frames"] == 6
    assert measured["peak"] > 0
    assert tuple(measured["parts"]) == memory_step.PARTS


# One step


@linux
@pytest.mark.parametrize("encoder", ["fve", "conv3d"])
def test_one_step_names_its_parts(encoder, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = [f"model.encoder={encoder}", "data.num_frames=6"]
    if encoder == "conv3d":
        options += ["data.num_context=2", "model.conv3d_size=8", "data.batch_size=1"]
    measured = memory_step.measure(load_config(tmp_path / "tiny.yaml", options))
    assert measured["frames"] == 6
    assert tuple(measured["parts"]) == memory_step.PARTS
    assert measured["seconds"] > 0
    model = initial_model(load_config(tmp_path / "tiny.yaml", options))
    parameters = sum(p.numel() for p in model.parameters())
    assert measured["model"] >= 3 * 4 * parameters * 0.9  # weights, and Adam's two moments
    assert measured["device"] == "cpu"


@linux
@pytest.mark.process
def test_a_step_on_clips_keeps_their_pixels_alone(tmp_path, monkeypatch):
    """14 clips in two tuples; without checkpointing layer4 keeps over 30 MB for six of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(vclr_cases.RECIPE)
    options = [*vclr_cases.CLIPS, "augmentation.size=48", "train.chunk_frames=16"]
    monkeypatch.setattr(subprocess, "run", in_a_copy)
    asked = {"recipe": str(tmp_path / "tiny.yaml"), "frames": 64, "ranks": 1}
    measured = memory.measure(asked | {"overrides": [*options, "data.tuple_frames=64"]})
    assert measured["frames"] == 64
    assert tuple(measured["parts"]) == memory_step.CLIP_PARTS
    pixels = 64 * 14 * 3 * 48**2
    assert measured["parts"]["frames"] == pytest.approx(pixels, rel=0.2)
    assert measured["parts"]["layer4"] < 1.5 * pixels  # 9 MB; scratch of a chunk is 4 MB


def test_lengths_of_clips_are_those_of_tuples_and_segments(capsys, monkeypatch, tmp_path):
    asked = []

    def measure(request):
        asked.append(load_config(request["recipe"], request["overrides"]))
        frames = request["frames"]
        return {k: v for k, v in run_of("", frames, 1e6 * frames).items() if k != "way"}

    monkeypatch.setattr(memory, "measure", measure)
    command = ["recipes/vclr.yaml", "data.batch_size=3", "--frames", "8,16,32"]
    assert memory.main([*command, "--out", str(tmp_path)]) == 0
    assert [cfg.data.tuple_frames for cfg in asked] == [8, 16, 32]
    result = json.loads((tmp_path / "memory.json").read_text())
    assert result["clips"] == 3 * 7
    assert result["fits"]["recipe"]["from"] == 8
    assert memory.main([*command, "--fit-from", "20", "--out", str(tmp_path)]) == 2
    assert "a line needs two lengths of at least --fit-from 20" in capsys.readouterr().err


@linux
def test_the_average_counts_and_an_overflow_does_not_hide_the_moments(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def too_high(device, precision):
        return torch.amp.GradScaler(device.type, init_scale=2.0**20)

    monkeypatch.setattr(training.loop.step, "make_scaler", too_high)
    cfg = load_config(tmp_path / "tiny.yaml", ["train.precision=fp16", "optim.ema=0.9"])
    measured = memory_step.measure(cfg)
    parameters = sum(p.numel() for p in initial_model(cfg).parameters())
    assert measured["model"] >= 4 * 4 * parameters  # weights, two moments, and the average
    assert measured["precision"] == "fp16"


@linux
def test_a_step_on_stored_features_runs_no_backbone(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = ["model.train_from=none", "data.cache=features"]
    measured = memory_step.measure(load_config(tmp_path / "tiny.yaml", options))
    assert measured["parts"]["frozen"] == measured["parts"]["layer4"] == 0


@linux
def test_the_step_is_the_trainer_s_own(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    compiled = []
    monkeypatch.setattr(CarlModel, "compile_backbone", lambda self: compiled.append(self))
    steps = []

    def step(self, *_):
        steps.append(self)
        return SimpleNamespace(overflow=False)

    monkeypatch.setattr(PairStep, "__call__", step)
    memory_step.measure(load_config(tmp_path / "tiny.yaml", ["train.compile=true"]))
    assert len(compiled) == 1
    assert len(steps) == 2  # one to warm up


def test_memory_is_the_part_s_that_runs_when_it_is_taken():
    meter = memory_step.Meter(torch.device("cpu"))
    readings = iter([100, 110, 150, 155, 175, 180])
    meter.in_use = lambda: next(readings)
    meter.last, meter.part = 100, "frames"
    assert next(readings) == 100
    inner = memory_step._Marked(lambda: "inner", meter, "layer4")
    outer = memory_step._Marked(lambda: inner(), meter, "transformer")
    assert outer() == "inner"  # readings 110, 150, 155, 175
    assert meter.kept["frames"] == 10
    assert meter.kept["transformer"] == 40 + 20
    assert meter.kept["layer4"] == 5
    loss = memory_step._Marked(SimpleNamespace(counts=lambda: 3).counts, meter, "loss", last=True)
    meter.in_use = iter([180, 190]).__next__
    assert loss() == 3
    assert meter.kept["frames"] == 15
    assert meter.kept["loss"] == 10
    assert outer() == "inner"  # in the backward: it belongs to no part
    assert sum(meter.kept.values()) == 90


def test_the_batch_has_padding_and_the_recipe_s_shape(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    cfg = load_config(tmp_path / "tiny.yaml", ["data.batch_size=3"])
    batch = memory_step.random_batch(cfg, 5)
    assert batch["frames"].shape == (3, 2, 5, 3, 16, 16)
    assert batch["frames"].dtype == torch.uint8
    assert batch["valid"].sum() == 3 * 2 * 5 - 1
    assert batch["valid"][0, 0].tolist() == [True] * 4 + [False]


# Evaluation of measurements


def test_a_line_through_known_points():
    line = memory_fit.fit([run_of("recipe", t, 7e6 + 3e4 * t) for t in (240, 480, 960)])
    assert line["a"] == pytest.approx(7e6)
    assert line["b"] == pytest.approx(3e4)
    assert line["r2"] == pytest.approx(1)
    assert line["from"] == 240
    bent = memory_fit.fit([run_of("recipe", t, t**2) for t in (1, 2, 3)])
    # Line 4 t - 10 / 3 through 1, 4, 9: residuals 1/3, -2/3, 1/3.
    assert bent["b"] == pytest.approx(4)
    assert bent["r2"] == pytest.approx(1 - (6 / 9) / (98 / 3))
    assert (
        memory_fit.fit([run_of("recipe", 2, 1.0), {"frames": 3, "error": "out of memory"}]) is None
    )


def test_the_longest_clips_follow_from_the_line():
    args = memory.parse_arguments(
        ["recipes/carl.yaml", "data.batch_size=3", "--frames", "80,240,480", "--plain"]
    )
    runs = [run_of("recipe", t, 10**9 + 10**6 * t) for t in (240, 480)]
    runs += [run_of("recipe", 80, 5 * 10**9)]  # below --fit-from
    runs += [run_of("plain", t, 10**7 * t) for t in (240, 480)]
    result = memory.summary(args, runs)
    assert result["clips"] == 6
    assert result["slope_ratio"] == pytest.approx(10)
    assert result["longest"]["16"] in (13_999, 14_000)  # 16 GB without model and a; 1 MB per frame
    assert result["longest"]["141"] in (138_999, 139_000)
    text = memory.conclusion(result)
    assert "1000 MB + 1000.0 kB x T, two lengths" in text
    assert "this CPU's figures" in text


def test_what_did_not_fit_is_left_out_of_the_line(tmp_path):
    args = memory.parse_arguments(["recipes/carl.yaml", "--frames", "240,480", "--plain"])
    runs = [run_of("recipe", t, 10**6 * t) for t in (240, 480)]
    runs += [run_of("plain", 240, 1e9), {"way": "plain", "frames": 480, "error": "out of memory"}]
    result = memory.summary(args, runs)
    assert result["fits"]["plain"] is None
    assert result["slope_ratio"] is None
    assert "out of memory" in memory.describe(runs[-1])
    assert "MB   " in memory.describe(runs[0])
    assert "(MB: " in memory.describe(runs[0])
    assert "plain: too few lengths" in memory.conclusion(result)
    from training.studies.memory_picture import draw

    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    nothing = memory.summary(args, [{"way": "recipe", "frames": 240, "error": "out of memory"}])
    assert "nothing could be measured" in memory.conclusion(nothing)
    draw(nothing, tmp_path / "picture.png")


def test_the_plain_way_is_dense_and_all_at_once():
    args = memory.parse_arguments(
        ["recipes/lav_tcc.yaml", "model.train_from=all", "train.chunk_frames=7", "--plain"]
    )
    recipe = memory.request(args, "recipe", 300)
    cfg = load_config(recipe["recipe"], recipe["overrides"])
    assert (cfg.data.num_frames, cfg.train.chunk_frames, cfg.train.checkpointing) == (300, 7, True)
    plain = memory.request(args, "plain", 300)
    cfg = load_config(plain["recipe"], plain["overrides"])
    assert (cfg.data.num_frames, cfg.train.chunk_frames, cfg.train.checkpointing) == (300, 0, False)
    assert (cfg.loss.lav.backend, cfg.loss.tcc.backend) == ("reference", "reference")
    assert cfg.model.train_from == "all"


# Errors


@pytest.mark.parametrize(
    ("code", "stderr", "ranks", "out_of_memory"),
    [
        (-9, "", 1, True),
        (1, "...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, True),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", 1, True),
        (1, "[rank1]: torch.OutOfMemoryError: CUDA out of memory\nChildFailedError:\n==", 2, True),
        (1, "traceback : Signal 9 (SIGKILL) received by PID 5\n====", 2, True),
        (1, "Traceback\nValueError: something else", 1, False),
        (1, "Traceback\n[rank0]: ValueError: something else\nChildFailedError:\n====", 2, False),
    ],
)
def test_a_step_that_fails(monkeypatch, code, stderr, ranks, out_of_memory):
    failed = SimpleNamespace(returncode=code, stdout="", stderr=stderr)
    environments = []

    def run(command, *, env, **options):
        environments.append(env)
        return failed

    monkeypatch.setattr(subprocess, "run", run)
    asked = {"recipe": "recipes/carl.yaml", "overrides": [], "frames": 480, "ranks": ranks}
    if out_of_memory:
        assert memory.measure(asked) == {"frames": 480, "error": "out of memory"}
    else:
        with pytest.raises(memory.MeasurementError, match=r"T = 480: .*ValueError: something else"):
            memory.measure(asked)
    assert environments[0]["MALLOC_MMAP_THRESHOLD_"] == "262144"
    assert environments[0]["MALLOC_TRIM_THRESHOLD_"] == "262144"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes/carl.yaml", "--frames", "a,b"], "expected numbers of at least 2"),
        (["recipes/carl.yaml", "--frames", "1,240"], "expected numbers of at least 2"),
        (["recipes/carl.yaml", "--frames", "80,240"], "a line needs two lengths"),
        (
            ["recipes/none.yaml", "--frames", "240,480"],
            "does not exist; training/recipes contains ae2.yaml, carl.yaml",
        ),
        (["recipes/carl.yaml", "--frames", "240,480", "train.chunk=3"], "unknown key"),
        (["recipes/tcn.yaml", "--frames", "240,481"], "expected an even number"),
        (["recipes/r3d_ucf101.yaml", "--frames", "80,160,240"], "set loss.action.classes, such as"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_measured(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(memory, "measure", lambda asked: pytest.fail("measured"))
    try:
        status = memory.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_failing_step_ends_with_status_1(monkeypatch, tmp_path, capsys):
    def fail(asked):
        raise memory.MeasurementError("T = 240: why")

    monkeypatch.setattr(memory, "measure", fail)
    assert memory.main(["recipes/carl.yaml", "--out", str(tmp_path)]) == 1
    assert "error: T = 240: why" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        memory.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "--frames" in out
    assert "80,160,240,480,960,1920" in out
