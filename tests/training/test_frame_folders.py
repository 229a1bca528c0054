"""Folders of numbered pictures are videos: found, indexed, copied, labelled, aligned, evaluated."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image", reason='needs Pillow: pip install "fastseq[train]"')

from pairs import PHASES, grey_run, warped  # noqa: E402
from video.counter_video import counter_frame, encode, read_counter  # noqa: E402
from view_client import serving  # noqa: E402

import training.align as align_command  # noqa: E402
from fastseq.video import probe, read_frames  # noqa: E402
from training import view  # noqa: E402
from training.data.cache import FrameCache  # noqa: E402
from training.data.files import INDEX_NAME, find_videos, stamp_of  # noqa: E402
from training.data.index import build_index, load_index  # noqa: E402
from training.data.pictures import named  # noqa: E402
from training.data.samples import Sample, Shard  # noqa: E402
from training.data.transcode import transcode_folder  # noqa: E402
from training.labelling.folder import VideoFolder  # noqa: E402
from training.labelling.frames import CHUNK, Pictures  # noqa: E402
from training.prepare import main  # noqa: E402
from training.support.command import UserError  # noqa: E402


def write_frames(folder: Path, count: int, name="{:06d}.jpg", first=1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        Image.fromarray(counter_frame(place)).save(folder / name.format(place + first))
    return folder


def tree(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def numbered(folder, prefix="", ending="jpg", count=3):
    return [f"{folder}/{prefix}{number}.{ending}" for number in range(count)]


def test_a_folder_of_numbered_pictures_is_a_video(tmp_path):
    tree(
        tmp_path,
        *numbered("frames/0001"),
        *numbered("frames/0002", "img_", "png"),
        *numbered("frames/few", count=2),
        *numbered("frames/0003", "img_"),
        "frames/0003/cover_1.jpg",
        "a.mp4",
        "poster.jpg",
    )
    found = find_videos(tmp_path)
    assert found.videos == ["a.mp4", "frames/0001", "frames/0002", "frames/0003"]
    assert found.pictures == ["frames/0001", "frames/0002", "frames/0003"]
    assert (found.places, found.sequences) == ({}, [])
    assert [*found.ignored] == [
        *("frames/0003/cover_1.jpg", "frames/few/0.jpg", "frames/few/1.jpg", "poster.jpg")
    ]


RAWFRAMES = [
    path
    for video in ("a", "b")
    for prefix in ("img_", "flow_x_", "flow_y_")
    for path in numbered(video, prefix)
]


def test_one_of_several_sequences_is_picked_by_a_pattern(tmp_path):
    tree(tmp_path, *RAWFRAMES, *numbered("c"))
    found = find_videos(tmp_path)
    assert found.videos == ["c"]
    assert named(found.sequences)[0] == (
        "pictures not used: a (flow_x_*.jpg (3), flow_y_*.jpg (3), img_*.jpg (3)): several "
        "sequences; pick one, such as --pictures 'img_*.jpg'"
    )
    for pattern in ("img_*", "img_*.jpg", "[ab]/img_*"):
        found = find_videos(tmp_path, pictures=pattern)
        assert found.videos == ["a", "b"]
        assert found.places == {"a": "a/img_*.jpg", "b": "b/img_*.jpg"}
        assert found.place("a") == "a/img_*.jpg"
        assert len(found.ignored) == 2 * 6 + 3
    for pattern in ("im", "flow_*"):  # none, and two in each folder
        with pytest.raises(
            UserError, match=r"picks one sequence .* in no folder .*; found a \(flow"
        ):
            find_videos(tmp_path, pictures=pattern)


def test_pictures_that_are_no_video_are_named_with_the_remedy(tmp_path):
    tree(
        tmp_path, *numbered("clips"), "clips/a.mp4", *numbered(".", "p"), *numbered("b", "", "bmp")
    )
    found = find_videos(tmp_path)
    assert found.videos == ["clips/a.mp4"]
    assert named(found.sequences) == [
        "pictures not used: . (p*.jpg (3)): they lie in the folder itself; move them into a folder "
        "below it",
        "pictures not used: b (*.bmp (3)): pictures of this kind are not read, make PNGs",
        "pictures not used: clips (*.jpg (3)): they lie beside a video file; move them elsewhere",
    ]
    (tmp_path / "clips" / "a.mp4").rename(tmp_path / "clips" / "a.txt")
    (tmp_path / "clips" / "1.jpg").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path} is itself the frames .* {tmp_path.parent}$"):
        find_videos(tmp_path)


def test_samples_of_tar_files_are_videos(tmp_path, monkeypatch):
    tree(tmp_path, "s-0.tar", "s-1.tar", "text.tar", "a.mp4")
    content = {
        "s-0.tar": [Sample("x", "x.mp4", 512, 2048, {"action": "jump"})],
        "s-1.tar": [Sample("y", "y", 0, 9216)],
        "text.tar": [],
    }
    monkeypatch.setattr(
        "training.data.files.read_shard", lambda tar: Shard(content[tar.name], {".txt": 2})
    )
    found = find_videos(tmp_path)
    assert found.pictures == ["s-1.tar/y"]
    assert found.unused == {".txt": 4}
    assert found.videos == ["a.mp4", "s-0.tar/x.mp4", "s-1.tar/y"]
    assert found.places == {"s-0.tar/x.mp4": "s-0.tar#512+2048", "s-1.tar/y": "s-1.tar#0+9216"}
    assert found.entries == {"s-0.tar/x.mp4": {"action": "jump"}}
    assert found.ignored == {"text.tar": ".tar"}


def test_the_stamp_of_a_folder_is_that_of_its_entries(tmp_path):
    folder = write_frames(tmp_path / "a", 3, "img_{}.jpg")
    before = stamp_of(folder)
    assert stamp_of(folder / "img_*.jpg") == before
    assert before[0] == 3
    os.utime(folder, ns=(1, 1))
    assert stamp_of(folder) == [3, 1]
    assert stamp_of(folder / "img_1.jpg")[0] == (folder / "img_1.jpg").stat().st_size


@pytest.fixture
def folder(tmp_path):
    """Penn Action's layout, and one rawframes folder beside a file."""
    folder = tmp_path / "set"
    for name, count in (("frames/0001", 24), ("frames/0002", 18)):
        write_frames(folder / name, count)
    write_frames(folder / "raw", 12, "img_{:05d}.jpg")
    write_frames(folder / "raw", 12, "flow_x_{:05d}.jpg")
    encode(folder / "a.mp4", 20, options={"crf": "18"})
    labels = {
        "classes": {"swing": ["up", "down"]},
        "videos": {
            "frames/0001": {"action": "swing", "boundaries": [5], "crop": [0, 0, 64, 48]},
            "frames/0002": {"action": "swing", "split": "test", "boundaries": [9]},
            "a.mp4": {"action": "swing", "trim": [2, 19]},
        },
    }
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return folder


def test_prepare_indexes_them(folder, capsys):
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "pictures used as videos: 2 (frames/0001, frames/0002)" in out
    assert "no frame rate given, 25 is assumed: pass fps (2): frames/0001, frames/0002" in out
    assert "raw (flow_x_*.jpg (12), img_*.jpg (12)): several sequences; pick one" in out
    assert main([str(folder), "--fps", "12.5"]) == 0
    out = capsys.readouterr().out
    assert "remarks" not in out
    videos = {video.id: video for video in load_index(folder).videos}
    assert {name: (video.frames, video.fps) for name, video in videos.items()} == {
        "a.mp4": (20, 25),
        "frames/0001": (24, 12.5),
        "frames/0002": (18, 12.5),
    }
    assert videos["frames/0002"].phases.tolist() == [0] * 9 + [1] * 9
    cache = FrameCache([videos["frames/0001"]], 48, progress=False)
    shown = [read_counter(frame) for frame in cache[videos["frames/0001"].path].numpy()]
    assert (shown, cache.failed) == ([*range(24)], [])


def test_prepare_copies_them_frame_by_frame(folder, tmp_path, capsys):
    (folder / "labels.json").unlink()
    out = tmp_path / "out"
    arguments = [str(folder), "--pictures", "raw/img_*", "--transcode", str(out), "--fps", "12.5"]
    assert main(arguments) == 0
    assert "copied: 2 videos, 32 frames" in capsys.readouterr().out
    videos = {video.id: video for video in load_index(out).videos}
    assert {name: (video.frames, video.fps) for name, video in videos.items()} == {
        "a.mp4": (20, 25),
        "raw.mp4": (12, 12.5),
    }
    assert [read_counter(frame) for frame in read_frames(out / "raw.mp4")] == [*range(12)]
    assert main(arguments) == 0
    assert "copied before: 2 videos" in capsys.readouterr().out
    write_frames(folder / "raw", 13, "img_{:05d}.jpg")
    assert main(arguments) == 0
    assert "copied: 1 video, 13 frames" in capsys.readouterr().out
    assert main([*arguments[:-1], "10"]) == 0  # another rate: another file
    assert probe(out / "raw.mp4").fps == 10


def test_copies_have_the_labels_in_frames(folder, tmp_path):
    content = json.loads((folder / "labels.json").read_text())
    content["videos"]["frames/0001"]["fps"] = 5
    content["videos"]["frames/0002"] |= {"unit": "seconds", "boundaries": [0.35]}
    (folder / "labels.json").write_text(json.dumps(content))
    report = transcode_folder(folder, tmp_path / "out", fps=20)
    assert report.written == ["a.mp4", "frames/0001.mp4", "frames/0002.mp4"]
    assert (report.frames, report.bad, report.strays) == (62, [], [])
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["videos"] == {
        "frames/0001.mp4": {"action": "swing", "boundaries": [5], "crop": [0, 0, 64, 48]},
        "frames/0002.mp4": {"action": "swing", "split": "test", "boundaries": [7]},
        "a.mp4": {"action": "swing", "trim": [2, 19]},
    }
    assert probe(tmp_path / "out" / "frames" / "0001.mp4").fps == 5


def test_damaged_pictures_are_left_out_with_their_names(folder, tmp_path, capsys):
    picture = folder / "frames" / "0001" / "000003.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    assert main([str(folder), "--verify"]) == 0
    assert "used in part: 1 damaged video" in (out := capsys.readouterr().out)
    assert "1 of 24 pictures do not decode: 000003.jpg (frame 2: Invalid data" in out
    assert {video.id: video.gaps for video in load_index(folder).videos}["frames/0001"] == ((2, 3),)
    assert main([str(folder), "--transcode", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "not copied: 1 video\n  frame 2 was requested, but 000003.jpg does not decode" in out


def test_view_shows_and_labels_them(folder):
    with serving(folder) as client:
        assert client.get("state")["videos"] == ["a.mp4", "frames/0001", "frames/0002"]
        facts = client.get("facts/1")
        assert (facts["frames"], facts["fps"], facts["chunk"]) == (24, 25, CHUNK)
        status, headers, content = client.request("GET", "frames/1/0")
        assert status == 200
        sizes = [int(size) for size in headers["X-Sizes"].split(",")]
        stream = io.BytesIO(content)
        shown = [np.asarray(Image.open(io.BytesIO(stream.read(size)))) for size in sizes]
        assert [*map(read_counter, shown)] == [*range(24)]


def test_a_rate_in_the_labels_counts_in_view(folder):
    content = json.loads((folder / "labels.json").read_text())
    content["videos"]["frames/0001"]["fps"] = 50
    (folder / "labels.json").write_text(json.dumps(content))
    opened = VideoFolder(folder)
    assert [opened.info(number).fps for number in range(3)] == [25, 50, 25]
    assert Pictures(24).chunk(opened.info(1), 0)
    opened.close()


@pytest.fixture
def two_sequences(tmp_path):
    """A folder of two numbered sequences, a video only by a pattern, and a file by --include."""
    folder = tmp_path / "data"
    for name in ("p", "q"):
        write_frames(folder / name, 5, "img_{}.jpg")
        write_frames(folder / name, 4, "flow_{}.jpg")
    encode(folder / "a.mp4", 3)
    (folder / "a.mp4").rename(folder / "clip.dat.md")
    return folder


def test_view_takes_the_choices_of_the_index(two_sequences, monkeypatch, capsys):
    def opened(**options):
        videos = VideoFolder(two_sequences, **options)
        videos.close()
        return videos

    with pytest.raises(UserError, match="holds no videos"):
        opened()
    (two_sequences / INDEX_NAME).write_bytes(b"no index")
    one = opened(pictures="p/img_*")
    assert (one.videos, one.info(0).fps, one.options) == (["p"], 25, " --pictures 'p/img_*'")
    build_index(two_sequences, pictures="img_*", fps=30, include=["*.md"])
    both = opened()
    assert both.videos == ["clip.dat.md", "p", "q"]
    assert [(both.info(k).frames, both.info(k).fps) for k in (1, 2)] == [(5, 30), (5, 30)]
    assert opened(pictures="flow_*", fps=12.5).info(1).frames == 4
    assert opened(pictures="flow_*", fps=12.5).info(1).fps == 12.5

    both.saved = True
    monkeypatch.setattr(view, "_until_interrupted", lambda: signal.raise_signal(signal.SIGINT))
    assert view._wait(both) == 0
    command = f"prepare {two_sequences} --fps 30 --pictures 'img_*' --include '*.md'`"
    assert command in capsys.readouterr().out
    for name in ("p", "q"):
        for path in (two_sequences / name).glob("img_*"):
            path.unlink()
    with pytest.raises(UserError, match=r"'img_\*' picks .* The pattern is that of the index"):
        opened()


def test_view_names_the_pictures_that_it_does_not_show(two_sequences, monkeypatch, capsys):
    encode(two_sequences / "a.mp4", 3)
    monkeypatch.setattr(view, "_until_interrupted", lambda: signal.raise_signal(signal.SIGINT))
    assert view.main([str(two_sequences), "--no-browser"]) == 0
    out = capsys.readouterr().out
    assert f"{two_sequences}: 1 video, 0 with phase labels" in out
    assert "pictures not used: p (" in out
    arguments = ["--no-browser", "--pictures", "img_*", "--fps", "10"]
    assert view.main([str(two_sequences), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{two_sequences}: 3 videos" in out
    assert "pictures not used" not in out
    with pytest.raises(SystemExit):
        view.main([str(two_sequences), "--fps", "0"])
    assert "--fps must be positive, got 0" in capsys.readouterr().err


def grey_frames(folder: Path, position) -> Path:
    folder.mkdir()
    for number, level in enumerate(40 + np.asarray(position) / PHASES * 180):
        pixels = np.full((48, 32, 3), round(level), np.uint8)
        Image.fromarray(pixels).save(folder / f"img_{number}.png")
    return folder


def test_align_takes_folders_and_patterns(tmp_path, monkeypatch, capsys):
    grey_run(monkeypatch)
    a = grey_frames(tmp_path / "a", warped(30, 2.0))
    b = grey_frames(tmp_path / "b", warped(20, 0.7))
    (b / "flow_1.png").write_bytes(b"")
    out = tmp_path / "out"
    pair = [str(a), str(b / "img_*.png")]
    assert align_command.main([*pair, "--run", "run", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert float(captured.out.split("path: ")[1].split()[0]) > 0.99
    assert f"{a}: no frame rate given, 25 is assumed" in captured.err
    assert probe(out / "aligned.mp4").frames == 30
    assert align_command.main([str(a), str(tmp_path), "--run", "run", "--out", str(out)]) == 2
    assert "the folder has no JPEG, PNG or WebP pictures" in capsys.readouterr().err


def test_pictures_are_reported_once_and_without_a_pattern_of_files(folder, capsys):
    write_frames(folder / "raw", 1, "cover_{}a.jpg")
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "pictures not used: raw (flow_x_*.jpg (12), img_*.jpg (12)): several" in out
    assert "ignored: 1 .jpg (raw/cover_1a.jpg)\n" in out
    assert "--include" not in out
    (folder / "notes.dat").write_bytes(b"text")
    assert main([str(folder)]) == 0
    assert "  to use one of these as a video: --include PATTERN\n" in capsys.readouterr().out


def test_options_of_the_last_index_that_are_not_repeated_are_named(folder, capsys):
    (folder / "labels.json").unlink()
    options = ["--fps", "12.5", "--pictures", "raw/img_*"]
    assert main([str(folder), *options]) == 0
    out = capsys.readouterr().out
    command = f"python -m training.prepare {folder}"
    assert "the index before" not in out
    assert f"and prepare again: `{command} --fps 12.5 --pictures 'raw/img_*'`\n" in out
    assert main([str(folder), "--fps", "10"]) == 0
    assert capsys.readouterr().out.startswith(
        "the index before had --pictures 'raw/img_*', the new one does not; to keep this: "
        f"`{command} --fps 10 --pictures 'raw/img_*'`\n"
    )
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "the index before had --fps 10, the new one does not; to keep this: `" in out
    assert main([str(folder)]) == 0
    assert "the index before" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--transcode", "--shards"])
def test_files_of_the_source_are_not_said_of_the_copies(option, folder, tmp_path, capsys):
    assert main([str(folder), option, str(tmp_path / "out")]) == 0
    source, out = capsys.readouterr().out.split(f"{tmp_path / 'out'}: 3 videos")
    assert f"other files of {folder}:\n  pictures used as videos: 2 (frames/0001, frames/" in source
    assert "  pictures not used: raw (" in source
    assert "pictures" not in out
    assert "ignored" not in out
