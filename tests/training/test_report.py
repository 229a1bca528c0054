"""The commands end to end, on tiny generated videos and a stand-in network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastseq.video import write_video
from training import evaluate, extract, report, retrieve
from training.evaluation import encoders
from training.evaluation.embed import load_embeddings
from training.recipe.losses import LossConfig
from training.recipe.schema import DataConfig
from training.runs.model import Restored

ROOT = Path(__file__).parents[2]
SIDE = 32
PHASES = ["rest", "lift", "hold"]


def grey_model(noise):
    import torch

    class GreyModel(torch.nn.Module):
        use_positions, pooled = True, False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.generator = torch.Generator().manual_seed(0)

        def encode(self, frames):
            level = frames.float().mean(dim=(2, 3, 4))
            level = level + noise * torch.randn(level.shape, generator=self.generator)
            angle = (level - 40) / 180 * torch.pi / 2
            frequencies = torch.arange(1, 5)
            waves = angle[..., None] * frequencies
            x = torch.cat([waves.cos(), waves.sin()], dim=-1)
            if self.use_positions:
                clock = torch.linspace(0, 1, frames.shape[1])[None, :, None]
                x = torch.cat([x, clock], dim=-1)
            else:
                x = torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1)
            return x

    return GreyModel()


def write_grey_videos(folder, *, labels=True, per_split=4):
    """Videos whose grey level is the phase position, with phases of very different lengths."""
    rng = np.random.default_rng(0)
    entries = {}
    for action in ("up", "down"):
        for split in ("train", "test"):
            for number in range(per_split):
                cuts = np.sort(rng.choice(np.arange(3, 37), 2, replace=False))
                position = np.interp(np.arange(40), [0, *cuts, 40], [0, 1, 2, 3])
                levels = (40 + position / 3 * 180).round()
                name = f"{action}_{split}{number}.mp4"
                frames = (np.full((SIDE, SIDE, 3), level, np.uint8) for level in levels)
                write_video(folder / name, frames, 25.0)
                entries[name] = {"action": action, "split": split, "boundaries": cuts.tolist()}
    if not labels:
        for entry in entries.values():
            del entry["boundaries"]
    content = {"classes": {"up": PHASES, "down": PHASES}, "videos": entries}
    (folder / "labels.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from training.data.index import build_index

    folder = tmp_path_factory.mktemp("videos")
    write_grey_videos(folder)
    build_index(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, folder):
    """A run on ``folder``: the trained network sees the phase, the untrained one noise."""
    from types import SimpleNamespace as Namespace

    from omegaconf import OmegaConf

    cfg = Namespace(
        data=DataConfig(folder=str(folder), engine="pyav", num_frames=16),
        augmentation=Namespace(size=SIDE),
        model=OmegaConf.create(
            {"backbone": "grey", "encoder": "grey", "layers": 0, "weights": None, "shift": 0}
            | {"backbone_share": 0}
        ),
        loss=LossConfig(),
    )

    def load(run, *, untrained, checkpoint):
        if untrained:
            return Restored(grey_model(200.0), cfg)
        return Restored(grey_model(0.5), cfg, "step_00000100", 100)

    monkeypatch.setattr(encoders, "_load", load)
    run = tmp_path / "my <run>"
    run.mkdir()
    (run / "config.yaml").write_text("loss:\n  temperature: 0.1  # a < b\n")
    lines = [
        json.dumps({"step": step, "loss": 5 / (1 + step), "seconds": 2.0 * step})
        for step in range(0, 100, 5)
    ]
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 100, "lo')
    return run


def evaluated(run, *arguments):
    assert evaluate.main([str(run), *arguments]) == 0
    return json.loads((run / "evaluation.json").read_text())


def test_evaluate_compares_trained_untrained_and_time_index(run, capsys):
    result = evaluated(run, "--stride", "2", "--fractions", "0.5", "1.0")
    rows = result["rows"]
    assert list(rows) == [
        "time index only",
        "untrained",
        "trained",
        "untrained, positions off",
        "trained, positions off",
    ]
    trained, clock = rows["trained"]["metrics"], rows["time index only"]["metrics"]
    assert trained["classification"] > clock["classification"] + 0.1
    assert trained["ap_at_5"] > max(clock["ap_at_5"], rows["untrained"]["metrics"]["ap_at_5"])
    assert trained["alignment_error"] < 0.5 * clock["alignment_error"]
    assert clock["kendalls_tau"] > 0.98
    assert "classification_at_0.5" in trained
    # The stand-in knows the clock only through its positions.
    off = rows["untrained, positions off"]["metrics"]
    assert off["kendalls_tau"] < rows["untrained"]["metrics"]["kendalls_tau"]
    assert result["stride"] == 2
    assert result["videos"] == {"train": 8, "test": 8}
    for key in ("classification", "progression", "kendalls_tau", "ap_at_5", "alignment_error"):
        assert result["definitions"][key].endswith(".")
        assert key in trained
    assert "NaN" not in (run / "evaluation.json").read_text()
    printed = capsys.readouterr().out
    assert f"{trained['ap_at_5']:.3f}" in printed
    assert "Do not argue from tau alone" in printed
    events = printed.partition("events carried over to another test video")[2].splitlines()
    assert f"{trained['event_error']:.2f} ({trained['event_error_median']:.2f})" in events[4]
    assert trained["event_error_dtw"] < 0.5 * clock["event_error_dtw"]
    assert trained["event_error_seconds"] == pytest.approx(trained["event_error"] / 25)


def test_protocols_of_evaluate(run, capsys):
    result = evaluated(run, "--protocol", "ae2")
    assert (result["protocol"], result["stride"]) == ("ae2", 5)
    assert {"weighted_f1", "map_at_10"} <= result["rows"]["trained"]["metrics"].keys()
    assert "weighted by the test frames" in result["definitions"]["weighted_f1"]
    printed = capsys.readouterr().out
    assert "AE2 (released code)" in printed
    assert "mAP@10" in printed
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "There is no video in the test split" not in page
    assert "mAP@10" in page
    assert "protocol ae2, stride 5" in page
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--protocol", "gta"])


def test_evaluate_twice_gives_the_same_figures(run):
    assert evaluated(run)["rows"] == evaluated(run)["rows"]


def test_evaluate_without_labels_names_the_labels_file(run, tmp_path, capsys):
    from training.data.index import build_index

    folder = tmp_path / "unlabelled"
    folder.mkdir()
    write_grey_videos(folder, labels=False, per_split=1)
    build_index(folder)
    assert evaluate.main([str(run), "--folder", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(folder / "labels.json") in error
    assert "training.prepare" in error
    assert not (run / "evaluation.json").exists()


def test_evaluate_of_a_split_that_is_not_there(run, tmp_path, capsys):
    from training.data.index import build_index

    folder = tmp_path / "one"
    folder.mkdir()
    write_video(folder / "a.mp4", [np.zeros((SIDE, SIDE, 3), np.uint8)] * 5, 25.0)
    build_index(folder)
    assert evaluate.main([str(run), "--folder", str(folder)]) == 2
    assert "no videos in the split 'test'" in capsys.readouterr().err


def test_extract_writes_unit_length_embeddings(run, tmp_path):
    assert extract.main([str(run), "--out", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").glob("*.npz"))
    assert len(files) == 16
    one = load_embeddings(tmp_path / "out" / "up_test0.mp4.npz")
    assert one["embeddings"].shape == (40, 9)
    assert one["embeddings"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(one["embeddings"], axis=1), 1, atol=1e-6)
    assert (one["id"], one["action"], one["split"], one["fps"]) == (
        "up_test0.mp4",
        "up",
        "test",
        25,
    )
    assert one["phases"].shape == (40,)


def test_extract_continues_where_it_was(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert extract.main([str(run), "--out", str(out)]) == 0
    files = sorted(out.glob("*.npz"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])  # as if cut off
    stamps = {file: file.stat().st_mtime_ns for file in files[2:]}
    capsys.readouterr()
    assert extract.main([str(run), "--out", str(out)]) == 0
    assert "2 files written" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in files[2:]} == stamps
    assert len(load_embeddings(files[1])["embeddings"]) == 40
    monkeypatch.setattr("training.runs.model.weights_name", lambda *_: "others")
    assert extract.main([str(run), "--out", str(out)]) == 0
    assert "16 files written" in capsys.readouterr().out
    assert extract.main([str(run), "--out", str(out), "--overwrite"]) == 0
    assert "16 files written" in capsys.readouterr().out


def test_diverged_network_is_an_error_that_says_so(run, monkeypatch, capsys, tmp_path):
    found = encoders._load(run, untrained=False, checkpoint=None)
    diverged = Restored(grey_model(float("nan")), found.cfg, "step_00000100", 100)
    monkeypatch.setattr(encoders, "_load", lambda run, **_: diverged)
    assert extract.main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert "diverged" in capsys.readouterr().err


def test_retrieve_writes_the_sheet(run):
    assert retrieve.main(["--run", str(run), "--queries", "3"]) == 0
    assert (run / "retrieval.png").read_bytes().startswith(b"\x89PNG")


class Page(HTMLParser):
    """Collects what a page points to and its headings, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.text, self.headings = [], [], "", []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "link", "input"):
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
        self.text += data


def read_page(file):
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_report_is_one_file_with_everything_in_it(run):
    result = evaluated(run)
    assert report.main([str(run)]) == 0
    page = read_page(run / "report.html")
    assert len(page.sources) == 5  # icon, retrieval, map, embeddings, loss
    assert all(source.startswith("data:") for source in page.sources)
    assert page.headings == [
        "Two videos in step",
        "How good are the embeddings?",
        "Similarity of all frames",
        "Most similar frames",
        "Embeddings in two dimensions",
        "Map of the embeddings",
        "Embeddings over time",
        "Training loss",
        "What was run",
    ]
    assert "Shown: all 8 test videos." in page.text
    assert "one of each video and at most 5, with their cosine similarity" in page.text
    assert "all 320 frames as pictures of up to 32 x 32 pixels" in page.text
    assert "Better than the clock: by DTW, events carried from one test video" in page.text
    assert "my <run>" in page.text
    assert "a < b" in page.text
    assert "95 steps in 3.2 minutes" in page.text
    assert "8 for training, 8 for testing" in page.text
    assert f"{result['rows']['trained']['metrics']['ap_at_5']:.3f}" in page.text
    assert "Better than the time index alone: phase classification" in page.text
    assert "Do not argue from tau alone" in page.text
    assert {file.name for file in (run / "pictures").iterdir()} == {
        *("retrieval.png", "map.png", "embeddings.png", "loss.png")
    }
    assert "a logistic regression predicts for each frame, fitted to the labelled frames of 4" in (
        page.text
    )
    assert re.search(r"On average, a phase is predicted to begin \d\.\d frames", page.text)
    assert "up_test0.mp4, lift" in page.text or "down_test0.mp4, lift" in page.text


def test_report_evaluates_where_that_has_not_been_done_and_shows_the_steps(run):
    lines = [
        {
            "step": step,
            "metrics": {"classification": 0.5 + step / 100, "ap_at_5": None},
            "time_index": {"classification": 0.6, "ap_at_5": 0.5},
        }
        for step in (0, 10, 20)
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.main([str(run)]) == 0
    made = (run / "evaluation.json").read_text()
    rows = json.loads(made)["rows"]
    assert rows == evaluated(run)["rows"]
    page = read_page(run / "report.html").text
    assert f"{rows['trained']['metrics']['ap_at_5']:.3f}" in page
    assert "Events carried over to another test video" in page
    assert "How many steps were needed" in page
    assert "A step picked by these curves is picked on the test videos: its figures are" in page
    assert (run / "pictures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "The table is of step" not in page
    step = json.loads(made)["step"]
    (run / "evaluation.json").write_text(made.replace(f'"step": {step}', '"step": 1'))
    assert report.main([str(run)]) == 0
    page = read_page(run / "report.html").text
    assert f"The table is of step 1, the pictures are of step {step}: run" in page


def test_report_without_labels_says_how_to_get_the_table(run, tmp_path):
    from training.data.index import build_index

    folder = tmp_path / "unlabelled"
    folder.mkdir()
    write_grey_videos(folder, labels=False, per_split=1)
    build_index(folder)
    assert report.main([str(run), "--folder", str(folder)]) == 0
    assert not (run / "evaluation.json").exists()
    page = read_page(run / "report.html")
    labels = "the train videos and the test videos have none. Write boundaries for them in "
    assert f"needs phase labels, and {labels}{folder / 'labels.json'}" in page.text
    assert f"python -m training.evaluate {run}" in page.text
    assert "No two of the 2 test videos have the same action: nothing can be aligned" in page.text
    assert '"split" and "action" in labels.json' in page.text
    assert "Similarity of all frames" not in page.headings
    assert "Embeddings in two dimensions" not in page.headings


def test_unlabelled_videos_are_played_and_mapped(run, tmp_path):
    from training.data.index import build_index

    folder = tmp_path / "unlabelled"
    folder.mkdir()
    write_grey_videos(folder, labels=False, per_split=2)
    build_index(folder)
    assert report.main([str(run), "--folder", str(folder)]) == 0
    page = read_page(run / "report.html")
    assert page.headings[:3] == [
        "Two videos in step",
        "How good are the embeddings?",
        "Similarity of all frames",
    ]
    assert "Shown: all 4 test videos." in page.text
    assert "Not evaluated: the table needs phase labels" in page.text


def test_large_videos_are_linked(tmp_path):
    from training.pages.html import video

    (tmp_path / "pictures").mkdir()
    file = tmp_path / "pictures" / "aligned.mp4"
    file.write_bytes(b"0" * 100)
    assert 'src="pictures/aligned.mp4"' in video(file, tmp_path, embed_below=50)
    assert "data:video/mp4" in video(file, tmp_path, embed_below=100)


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["evaluate", "extract", "align", "retrieve", "report", "side_by_side"]
)
def test_help_loads_nothing_heavy(name):
    code = (
        f"import sys, training.{name} as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'scipy', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m training." + name in done.stdout


@pytest.mark.parametrize("command", [evaluate, report])
def test_a_run_that_is_not_there_is_one_clear_line(command, tmp_path, capsys):
    assert command.main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert len(error.splitlines()) == 1


def test_without_test_videos_the_page_shows_those_of_training(run, tmp_path):
    from training.data.index import build_index

    clips = tmp_path / "clips"
    clips.mkdir()
    write_grey_videos(clips, labels=False, per_split=2)
    content = json.loads((clips / "labels.json").read_text())
    for entry in content["videos"].values():
        entry["split"] = "train"
    (clips / "labels.json").write_text(json.dumps(content))
    build_index(clips)
    assert report.main([str(run), "--folder", str(clips)]) == 0
    page = (run / "report.html").read_text()
    assert "Shown: all 8 training videos." in page
    assert "There is no video in the test split &#x27;test&#x27;: this page shows training" in page
    assert "Not evaluated: there are no test videos apart from those of training." in page
    assert "<h1>up, down</h1>" in page or "<h1>down, up</h1>" in page
