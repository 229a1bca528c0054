"""Damaged videos do not stop a command: it leaves them out, names them and ends with status 3."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from runs import RECIPE

from fastseq.video import VideoError, write_video
from training import align, compare, evaluate, extract, report, retrieve, train
from training.data.index import VideoRecord, build_index, load_index
from training.evaluation import embed, plots, strips
from training.evaluation.alignment import align as align_videos
from training.evaluation.alignment import evenly, stretched, write_aligned_video
from training.evaluation.baselines import time_index, time_index_embedding
from training.evaluation.embed import EmbeddedVideo, has_embeddings, load_embeddings
from training.evaluation.metrics import labelled_video
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.video_level import evaluate_video_level
from training.support.command import LeftOut

NAMES = ["train0", "train1", "train2", "test0", "test1", "test2"]
OPTIONS = {"g": "10", "bf": "0", "crf": "18"}


def encode(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 48, 32, "yuv420p", OPTIONS
        for _ in range(30):
            pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())


def damage(path: Path, packet: int = 14) -> bytes:
    """Break one packet in the middle, in a file that seems unchanged. Returns its former
    content.
    """
    before, content = path.stat(), path.read_bytes()
    with av.open(str(path)) as container:
        position = [p.pos for p in container.demux(video=0) if p.size][packet]
    spoilt = bytearray(content)
    spoilt[position : position + 4] = b"\x7f\xff\xff\xff"  # length of its NAL unit
    path.write_bytes(spoilt)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return content


def repair(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "videos").mkdir()
    labels = {"classes": {"one": ["x", "y", "z"], "two": ["x"]}, "videos": {}}
    for seed, name in enumerate(NAMES):
        encode(folder / "videos" / f"{name}.mp4", seed)
        split = name[:-1]
        labels["videos"][f"{name}.mp4"] = {
            "action": "one",
            "split": split,
            "boundaries": [10, 20 - seed],
        }
    for split in ("train", "test"):
        encode(folder / "videos" / f"{split}_other.mp4", 9)
        labels["videos"][f"{split}_other.mp4"] = {"action": "two", "split": split}
    (folder / "videos" / "labels.json").write_text(json.dumps(labels))
    (folder / "videos" / "zero.mp4").write_bytes(b"")
    build_index(folder / "videos")
    (folder / "tiny.yaml").write_text(RECIPE)
    places = [f"data.folder={folder / 'videos'}", f"train.run_dir={folder / 'run'}"]
    assert train.main([str(folder / "tiny.yaml"), *places, "train.steps=1"]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of that folder with one damaged test video; the run is `run`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path / "videos"


LAST = (
    "1 file was left out when the folder was prepared\n"
    "1 video could not be read and had to be left out:\n"
    "  {name}: "
)


def said_last(capsys, name: str) -> None:
    out, err = capsys.readouterr()
    assert f"left out {name}: " in err  # as soon as it is encountered
    assert LAST.format(name=name) in out
    assert len(out[out.index("1 file was left out") :].strip().splitlines()) == 4


@pytest.mark.parametrize("protocol", ["carl", "lav", "tcc", "ae2"])
@pytest.mark.parametrize("name", ["test1.mp4", "train0.mp4"])
def test_evaluation_drops_a_video_from_all_rows(folder, capsys, protocol, name):
    damage(folder / name)
    assert evaluate.main(["run", "--protocol", protocol]) == 3
    said_last(capsys, name)
    result = json.loads(Path("run/evaluation.json").read_text())
    assert [*result["left_out"]] == [name]
    assert result["left_out"][name].startswith("frame 14 was requested, but ")
    split = name[:-5]
    assert result["videos"] == {"train": 4, "test": 4} | {split: 3}
    # The time index is the same as for a folder without that video.
    index = load_index(folder)
    kept = [record for record in index.videos if record.id != name]
    by_split = [[r for r in kept if r.split == one] for one in ("train", "test")]
    expected = evaluate_embeddings(
        *map(time_index, by_split), index.classes, protocol=protocol, stride=5
    )
    row = result["rows"]["time index only"]["metrics"]
    assert row == {k: v if np.isfinite(v) else None for k, v in expected["metrics"].items()}
    untouched = evaluate_embeddings(
        *[time_index([r for r in index.videos if r.split == s]) for s in ("train", "test")],
        index.classes,
        protocol=protocol,
        stride=5,
    )
    assert untouched["metrics"] != expected["metrics"]


def test_evaluation_of_whole_videos_drops_one_from_all_rows(folder, capsys):
    (folder / "test1.mp4").write_bytes(content := (folder / "test1.mp4").read_bytes())
    build_index(folder)
    damage(folder / "test1.mp4", packet=0)
    assert evaluate.main(["run", "--protocol", "vclr"]) == 3
    said_last(capsys, "test1.mp4")
    result = json.loads(Path("run/evaluation.json").read_text())
    assert [*result["left_out"]] == ["test1.mp4"]
    assert result["videos"] == {"train": 4, "test": 3}
    repair(folder / "test1.mp4", content)
    left_out = LeftOut()
    whole = evaluate_video_level("run", left_out=left_out, progress=False)
    assert (whole["videos"], left_out.videos) == ({"train": 4, "test": 4}, {})


def test_a_split_without_readable_labels_is_an_error(folder, capsys):
    for number in range(3):
        damage(folder / f"test{number}.mp4")
    assert evaluate.main(["run"]) == 2
    err = capsys.readouterr().err
    assert "none of the 1 readable videos of the split 'test' has phase labels" in err
    assert err.count("left out test") == 3
    damage(folder / "test_other.mp4")
    shutil.rmtree("run/embeddings")  # kept, as size and time of the file are unchanged
    assert evaluate.main(["run"]) == 2
    assert "none of the videos in the split 'test'" in capsys.readouterr().err
    assert retrieve.main(["--run", "run"]) == 2
    assert report.main(["run"]) == 2
    assert evaluate.main(["run", "--protocol", "vclr"]) == 2
    assert not Path("run/evaluation.json").exists()
    assert not Path("run/report.html").exists()


def test_extract_goes_on_and_does_the_rest_after_the_repair(folder, capsys):
    content = damage(folder / "test1.mp4")
    assert extract.main(["run", "--out", "out"]) == 3
    out = capsys.readouterr().out
    assert "7 files written to out" in out
    assert LAST.format(name="test1.mp4") in out
    expected = sorted(f"{r.id}.npz" for r in load_index(folder).videos if r.id != "test1.mp4")
    assert sorted(os.listdir("out")) == expected
    assert extract.main(["run", "--out", "out"]) == 3
    assert "0 files written to out, 7 were there already" in capsys.readouterr().out
    repair(folder / "test1.mp4", content)
    assert extract.main(["run", "--out", "out"]) == 0
    assert "1 file written to out, 7 were there already" in capsys.readouterr().out
    assert len(load_embeddings("out/test1.mp4.npz")["embeddings"]) == 30


@pytest.mark.parametrize(
    ("main", "arguments", "made"),
    [(retrieve.main, ["--run", "run"], "retrieval.png"), (report.main, ["run"], "report.html")],
)
def test_pictures_are_made_without_it(folder, capsys, main, arguments, made):
    damage(folder / "test1.mp4")
    assert main(arguments) == 3
    said_last(capsys, "test1.mp4")
    assert Path("run", made).is_file()
    if made == "report.html":
        assert "<th>not in the pictures" in Path("run", made).read_text()


@pytest.mark.parametrize("way", ["gone", "empty", "cut off"])
def test_whatever_happens_to_a_file(folder, capsys, monkeypatch, way):
    """Damage after the index was read: a command checks the folder once, when it starts."""
    opened = embed.features_each

    def after_the_index(*arguments, **options):
        path = folder / "test1.mp4"
        content = path.read_bytes()
        path.unlink() if way == "gone" else path.write_bytes(content[: 600 * (way == "cut off")])
        return opened(*arguments, **options)

    monkeypatch.setattr(embed, "features_each", after_the_index)
    assert extract.main(["run", "--out", "out"]) == 3
    said_last(capsys, "test1.mp4")


def test_align_needs_both_and_takes_what_is_sound(folder, capsys):
    damage(folder / "test1.mp4", packet=25)
    a, b = (str(folder / f"test{k}.mp4") for k in (0, 1))
    assert align.main([a, b, "--run", "run", "--out", "out"]) == 0
    assert "test1.mp4 is damaged, its sound frames were taken: " in capsys.readouterr().err
    assert Path("out/aligned.mp4").is_file()
    (folder / "test1.mp4").write_bytes(b"")
    assert align.main([a, b, "--run", "run", "--out", "more"]) == 2
    assert "the file is empty" in capsys.readouterr().err


def test_a_comparison_does_not_leave_out_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "main", lambda arguments: 3)
    options = ["--seeds", "1", "--jobs", "1", "--train-videos", "1", "--test-videos", "1"]
    assert compare.main(["--methods", "untrained", *options]) == 1
    assert "a comparison needs all videos: remove compare/seed_0" in capsys.readouterr().err


# --- gaps ---------------------------------------------------------------------------------------

GAPS = ((0, 2), (9, 12), (28, 30))
SOUND = [*range(2, 9), *range(12, 28)]


def record(name="a", gaps=GAPS, path="none.mp4"):
    phases = np.repeat([0, 1, 2], 10)
    phases[5] = -1
    return VideoRecord(
        name, str(path), 30, 25.0, width=48, height=36, phases=phases, split="test", gaps=gaps
    )


def embedded(one, seed=0):
    rows = np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = EmbeddedVideo(one, rows)
    return EmbeddedVideo(one, rows[made.frames])


def test_rows_are_of_the_sound_frames():
    video, whole = embedded(record()), embedded(record(gaps=()))
    assert video.frames.tolist() == SOUND
    assert video.phases.tolist() == whole.record.phases[SOUND].tolist()
    labelled, full = labelled_video(video), labelled_video(whole)
    at = [frame for frame in SOUND if frame != 5]
    in_full = [np.flatnonzero(np.delete(np.arange(30), 5) == frame)[0] for frame in at]
    np.testing.assert_array_equal(labelled.embeddings, full.embeddings[in_full])
    np.testing.assert_array_equal(labelled.phases, full.phases[in_full])
    # By the true numbers, phase 1 now begins with frame 12 and ends with frame 19.
    assert labelled.position[labelled.phases == 1].tolist() == [1 + k / 8 for k in range(8)]
    (clock,) = time_index([record()])
    np.testing.assert_array_equal(clock.embeddings, time_index_embedding(30)[SOUND])


def test_files_hold_the_numbers_of_the_frames(tmp_path):
    video, path = embedded(record()), tmp_path / "a.npz"
    embed.save_embeddings(path, video, "w")
    found = load_embeddings(path)
    assert found["frames"].tolist() == SOUND
    np.testing.assert_array_equal(found["phases"], video.record.phases[SOUND])
    assert has_embeddings(path, video.record, "w")
    for other in ((), ((0, 2), (9, 12), (27, 29))):  # as many frames, but different ones
        assert not has_embeddings(path, dataclasses.replace(video.record, gaps=other), "w")
    plain = embedded(record(gaps=()))
    old = {key: value for key, value in found.items() if key != "frames"}
    np.savez(path, **old | {"embeddings": plain.embeddings, "phases": plain.phases})
    assert has_embeddings(path, plain.record, "w")  # as a version without frame numbers wrote it


def test_stretching_goes_by_the_true_numbers():
    whole, other = embedded(record(gaps=())), embedded(record("b", ()))
    assert stretched(whole, other).tolist() == evenly(30, 30).tolist()
    video = embedded(record())
    assert other.frames[stretched(video, other)].tolist() == SOUND
    nearest = [min(SOUND, key=lambda s: (abs(s - k), -s)) for k in range(30)]
    assert video.frames[stretched(whole, video)].tolist() == nearest


def test_pictures_show_the_frames_they_name(tmp_path, monkeypatch):
    levels = 8 * np.arange(30, dtype=np.uint8)[:, None, None, None]
    path = tmp_path / "a.mp4"
    write_video(path, np.broadcast_to(levels, (30, 36, 48, 3)), 25, crf=5)
    a = embedded(record("a", GAPS, path))
    b = EmbeddedVideo(record("b", ((3, 5),), path), embedded(record(gaps=((3, 5),))).embeddings)
    panels = []
    monkeypatch.setattr(
        "training.evaluation.pictures.side_by_side", lambda given, **_: panels.extend(given) or ()
    )
    monkeypatch.setattr("fastseq.video.write_video", lambda file, frames, fps: None)
    alignment = align_videos(a, b)
    write_aligned_video(a, b, alignment, tmp_path / "out.mp4")
    for panel in panels:
        shown = panel.frames[panel.shown].mean((1, 2, 3))
        assert np.abs(shown - 8.0 * panel.numbers[panel.shown]).max() < 4
        assert len(panel.shown) == len(SOUND)
    assert panels[0].numbers[panels[0].shown].tolist() == SOUND
    plots.similarity_map(a, b, (alignment.i, alignment.j), tmp_path / "map.png")
    strips.embedding_strips([a, b], {}, tmp_path / "strips.png")

    from training.evaluation import pictures, retrieval

    rows = []
    monkeypatch.setattr(pictures, "contact_sheet", lambda given, file: rows.extend(given))
    assert retrieval.retrieval_sheet([a, b], {}, tmp_path / "sheet.png") == len(rows) > 1
    for tile in (tile for row in rows for tile in row):
        number = int(tile.lines[1].split()[1])
        assert abs(tile.frame.mean() - 8 * number) < 4
        phase = record().phases[number]
        assert tile.lines[2].endswith("no label" if phase < 0 else f"phase {phase}")


def test_without_a_place_for_it_a_video_that_cannot_be_read_is_an_error(folder):
    from training.evaluation.encoders import load_encoder

    damage(folder / "test1.mp4")
    encode_frames, cfg = load_encoder("run")
    with pytest.raises(VideoError, match=r"test1\.mp4"):
        embed.embed_records({"it": encode_frames}, load_index(folder).videos, cfg, progress=False)
