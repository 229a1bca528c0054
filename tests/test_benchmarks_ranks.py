"""benchmarks.ranks: closed forms of the cost model against counts and simulations, its page on
file, and one measurement with two gloo processes on tiny shapes.
"""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cost import predict
from benchmarks.cost.machine import CARDS
from benchmarks.ranks import __main__ as command
from benchmarks.ranks import measure, model, report
from benchmarks.ranks.model import Links, Problem
from benchmarks.ranks_peers import WAYS
from fastseq.ops.scl.ring.parts import Parts
from training.recipe.load import load_config

ROOT = Path(__file__).parents[1]
CARD = CARDS["NVIDIA H100 80GB HBM3"]
LINKS = Links()
BLOCKS = ((False, model.forward_block), (True, model.backward_block))


@pytest.mark.parametrize("backward", [False, True])
def test_bytes_of_a_hop_are_those_of_the_tensors_that_travel(backward):
    videos, frames = 3, 50
    part = SimpleNamespace(channels=model.CHANNELS, masked=(True, True))
    shapes = Parts._shapes(part, (videos, frames, frames), [3] if backward else [])
    dtypes = [torch.bfloat16] * 2 + [torch.int64] * 2 + [torch.uint8] * 2 + [torch.float32]
    sent = sum(
        torch.Size(shape).numel() * dtype.itemsize
        for shape, dtype in zip(shapes, dtypes, strict=False)
    )
    assert model.hop_bytes(Problem(4 * frames, 4, videos), backward) == sent


@pytest.mark.parametrize("backward", [False, True])
def test_operations_of_a_block_are_those_of_its_products(backward):
    counted, part, videos = 0, 5, 2
    for _direction, _video, _row, _column in itertools.product(
        range(2), range(videos), range(part), range(part)
    ):
        counted += 2 * model.CHANNELS  # the score
        counted += 2 * model.CHANNELS if backward else 0  # its share of the row's gradient
    assert model.block_flop(part, videos, backward) == counted


def test_a_long_pass_takes_what_the_kernels_are_predicted_to_take():
    rows = predict.read(command.OFFLINE.parent / "predicted.csv")
    want = {
        row["mode"]: float(row["predicted_us"])
        for row in rows
        if (row["op"], row["shape"], row["dtype"]) == ("scl", "1x65536x128", "bf16")
    }
    forward, backward = (block(65536, 65536, 1, CARD) * 1e6 for _, block in BLOCKS)
    assert forward == pytest.approx(want["forward"], rel=0.05)
    assert forward + backward == pytest.approx(want["both"], rel=0.05)


@pytest.mark.parametrize(("frames", "ranks", "videos"), [(30720, 8, 1), (4096, 64, 1), (960, 2, 9)])
def test_the_ring_takes_as_long_as_a_simulation(frames, ranks, videos):
    one = Problem(frames, ranks, videos)
    way, waited = model.ring(one, LINKS, CARD), 0.0
    for (backward, block), got in zip(BLOCKS, way[:2], strict=True):
        present = arrival = 0.0
        for hop in range(ranks):
            waited += max(0.0, arrival - present)
            begin = max(present, arrival)
            if hop + 1 < ranks:  # the next block is sent while this one is computed
                arrival = begin + model.hop_seconds(one, LINKS, backward)
            present = begin + block(one.part, one.part, videos, CARD)
        assert got == pytest.approx(present)
    assert model.exposed(one, LINKS, CARD) == pytest.approx(waited)


@pytest.mark.parametrize("videos", [1, 4, 64])
@pytest.mark.parametrize("ranks", [8, 16])
def test_every_hop_hides_from_the_closed_form_on(ranks, videos):
    for backward, block in BLOCKS:
        found = model.hidden_from(videos, LINKS.rate(ranks), LINKS.latency, CARD, backward)

        def shown(part: int, block=block, backward=backward) -> bool:
            one = Problem(ranks * part, ranks, videos)
            return model.hop_seconds(one, LINKS, backward) > block(part, part, videos, CARD)

        parts = range(found, 30_000, 7)
        assert not any(map(shown, parts))


def test_the_closed_form_is_tight_where_no_latency_and_no_launch_counts():
    """At 64 videos a GPU is full: just below the bound a hop takes longer than a block."""
    videos = 64
    found = model.hidden_from(videos, LINKS.network, 0.0, CARD)
    one = Problem(16 * int(0.9 * found), 16, videos)
    hop = model.hop_seconds(one, LINKS._replace(latency=0.0))
    assert hop > model.forward_block(one.part, one.part, videos, CARD)


def test_the_closed_form_solves_its_equation():
    videos, latency = 64, 1.0
    found = model.hidden_from(videos, LINKS.network, latency, CARD)
    far = model.kernel("scl_stats_kernel", found)
    pair = far.load / (far.rows * far.columns * CARD.processors * CARD.clock)
    hop = 2 * videos * found * model.frame_bytes() / LINKS.network + latency
    assert 2 * videos * pair * found**2 == pytest.approx(hop, rel=1e-4)


def test_memory_of_the_ring_shrinks_with_ranks_and_that_of_an_all_gather_does_not():
    few, many = Problem(30720, 8), Problem(30720, 64)
    ratios = {
        name: way(few, LINKS, CARD).memory / way(many, LINKS, CARD).memory
        for name, way in model.WAYS.items()
    }
    assert ratios["ring"] == pytest.approx(8)
    assert ratios["all-gather, own rows"] < 1.3
    assert ratios["all-gather, whole loss"] == pytest.approx(1)


def test_an_all_gather_uses_all_adapters_of_a_node():
    slow = Links(nvlink=450e9, network=5e9)
    assert LINKS.gather_rate(8) == LINKS.rate(8) == 450e9
    assert (LINKS.gather_rate(16), LINKS.rate(16)) == (400e9, 50e9)
    assert slow.gather_rate(16) == 8 * slow.rate(16) == 40e9
    assert model.gather_seconds(1e6, 1, LINKS) == 0


def test_the_attention_is_that_of_the_recipe():
    recipe = load_config("recipes/carl.yaml", ["data.folder=videos"]).model
    encoder = model.Transformer()
    assert (encoder.layers, encoder.hidden) == (recipe.layers, recipe.hidden_size)
    found = model.attention(Problem(1024, 4), LINKS, CARD, encoder)
    heads, channels = recipe.heads, recipe.hidden_size // recipe.heads
    of_a_rank = 2 * 256 * heads * 2 * channels * 2  # views, frames, keys and values, bfloat16
    assert found.received == 3 * of_a_rank
    assert found.kept == recipe.layers * 4 * of_a_rank


def test_the_page_on_file_is_the_output(capsys, monkeypatch, tmp_path):
    before = command.OFFLINE.read_text()
    monkeypatch.setattr(command, "OFFLINE", tmp_path / "ranks.md")
    command.main([])
    assert capsys.readouterr().out == before == command.OFFLINE.read_text()
    command.OFFLINE.unlink()
    command.main(["--gpus", "16", "--frames", "4096", "--network", "25"])
    text = capsys.readouterr().out
    assert not command.OFFLINE.exists()
    assert "between nodes, 25 GB/s" in text
    assert text.count("| 16: 256 |") == 1
    assert "Not measured yet" in text


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--gpus", "0", "expected a positive integer, got '0'"),
        ("--nvlink", "-3", "expected a positive number, got '-3'"),
        ("--network", "fast", "expected a positive number, got 'fast'"),
    ],
)
def test_bad_numbers_are_one_line(option, text, said, capsys):
    with pytest.raises(SystemExit) as error:
        command.main([f"{option}={text}"])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.process
def test_help_and_the_model_need_no_torch():
    code = (
        "import sys; from benchmarks.ranks.__main__ import main\n"
        "main(['--gpus', '8', '--frames', '960'])\n"
        "try: main(['--help'])\n"
        "finally: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "--measure" in done.stdout


@pytest.mark.process
def test_two_processes_agree_with_one():
    frames = 2048
    job = {"dtypes": ["float64"], "check_frames": 90, "times": [64], "memory": [frames]}
    answer = measure.launch(2, **job, rounds=1, more=measure.MALLOC)
    checked = answer["differences"]
    assert [(row["way"], row["split"]) for row in checked] == [
        *((way, "even") for way in WAYS),
        ("ring", "uneven, masks"),
    ]
    for row in checked:
        assert row["value"] < 1e-13
        assert row["gradient"] < 1e-12
    assert [row["way"] for row in answer["times"]] == list(WAYS)
    for row in answer["times"]:
        assert 0 < row["best_ms"] < 1e5
        assert row["cpu_ms"] > 0
    # Whole loss: the frames of both ranks and their gradients, float32.
    peaks = {row["way"]: row["peak_mb"] for row in answer["memory"]}
    assert peaks["all-gather, whole loss"] > 4 * frames * 128 * 4 / 1e6
    assert peaks["ring"] < peaks["all-gather, whole loss"]


@pytest.mark.process
def test_a_process_that_fails_is_named():
    with pytest.raises(
        RuntimeError, match=r"rank 0 of 1: AttributeError: .* no attribute 'float7'"
    ):
        measure.launch(1, dtypes=["float7"], check_frames=8)


def fake_launch(ranks: int, difference: float = 1e-15, **job) -> dict[str, list[dict]]:
    """Answers of ``launch`` without processes."""
    names = [{"way": way, "ranks": ranks} for way in WAYS]
    return {
        "differences": [
            {**one, "frames": 8, "split": "even", "dtype": dtype, "value": 0.0}
            | {"gradient": difference}
            for one in names
            for dtype in job.get("dtypes", ())
        ],
        "times": [
            {**one, "frames": t, "rounds": 2, "best_ms": 12.3456, "cpu_ms": 7.0}
            for t in job.get("times", ())
            for one in names
        ],
        "memory": [
            {**one, "frames": t, "peak_mb": 1.5} for t in job.get("memory", ()) for one in names
        ],
    }


def test_the_measurement_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "launch", fake_launch)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    words = ["--measure", "--ranks", "1", "2", "--lengths", "64", "128"]
    command.main([*words, "--results", str(tmp_path)])
    out, bar = capsys.readouterr()
    (folder,) = tmp_path.iterdir()
    assert (folder / "ranks.md").read_text() == out.rstrip("\n") + "\n"
    assert "10/10" in bar
    found = json.loads((folder / "ranks.json").read_text())
    assert len(found["calls"]) == 2 * 2 * len(WAYS)
    assert {"device", "load", "torch", "commit"} <= found["environment"].keys()
    assert "| 128; 2 | 12.3 (7) | 12.3 (7) | 12.3 (7) |" in out
    assert "| 64; 1 | 1.5 | 1.5 | 1.5 |" in out
    assert "| ring, even | 2 | 0e+00, 1e-15 | 0e+00, 1e-15 |" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "differs from one process, so nothing was timed"),
        (["--lengths", "65"], "--lengths 65 must be multiples of --ranks 2"),
    ],
)
def test_no_page_without_valid_results(words, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "launch", lambda *a, **job: fake_launch(*a, 1e-3, **job))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(SystemExit) as error:
        command.main(["--measure", "--ranks", "2", "--results", str(tmp_path), *words])
    assert error.value.code == 1
    assert re.search(rf"{report.COMMAND}: .*{said}", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
