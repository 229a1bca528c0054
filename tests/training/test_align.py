"""Aligned videos, retrieval and their pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from pairs import PHASES, embedded, grey_run, grey_video, warped
from PIL import Image
from video.counter_video import X264, encode

from fastseq.video import probe, read_frames
from training import align as align_command
from training.data.index import VideoRecord, build_index
from training.evaluation.alignment import (
    align,
    evenly,
    match_frames,
    matches,
    stretched,
    write_aligned_video,
    write_alignment,
    write_matches,
)
from training.evaluation.baselines import time_index, time_index_embedding
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.retrieval import choose_queries, nearest_frames, retrieval_sheet
from training.evaluation.sheets import frame_row
from training.evaluation.videos import seconds_of
from training.pages.align_page import of_one_action
from training.pages.payload import payload
from training.recipe.schema import plain_config
from training.support.command import UserError


def test_matched_frame_is_the_middle_of_those_on_the_path():
    i, j = np.array([0, 1, 1, 1, 2, 3]), np.array([0, 1, 2, 3, 4, 4])
    assert match_frames(i, j, 4).tolist() == [0, 2, 4, 4]


def test_alignment_finds_the_matching_moments_and_the_even_line_does_not():
    slow, fast = warped(60, 2.0), warped(45, 0.7)
    alignment = align(embedded("a", slow), embedded("b", fast))
    off = np.abs(fast[alignment.matched] - slow)
    off_evenly = np.abs(fast[evenly(60, 45)] - slow)
    assert off.mean() < 0.06
    assert off_evenly.mean() > 0.4
    assert alignment.similarity > alignment.straight
    assert alignment.similarity == pytest.approx(1.0, abs=2e-3)


def test_aligned_video_shows_the_matched_frames(tmp_path):
    slow, fast = warped(30, 2.0), warped(20, 0.7)
    a = embedded("a", slow, path=grey_video(tmp_path / "a.mp4", slow))
    b = embedded("b", fast, path=grey_video(tmp_path / "b.mp4", fast))
    alignment = align(a, b)
    write_aligned_video(a, b, alignment, tmp_path / "out.mp4", height=96)
    assert probe(tmp_path / "out.mp4").frames == 30
    shown = read_frames(tmp_path / "out.mp4").numpy().astype(float)
    width = shown.shape[2]
    panel = (width - 8) // 3
    centre = [8 + number * panel + (panel - 8) // 2 for number in range(3)]
    left, middle, right = (shown[:, 40:60, x - 4 : x + 4].mean(axis=(1, 2, 3)) for x in centre)
    grey = 40 + np.stack([slow, fast[alignment.matched], fast[evenly(30, 20)]]) / PHASES * 180
    np.testing.assert_allclose(left, grey[0], atol=6)
    np.testing.assert_allclose(middle, grey[1], atol=6)
    np.testing.assert_allclose(right, grey[2], atol=6)
    above = shown[:, :38]  # titles and names, where a player's controls do not hide them
    assert above.mean() > 200 > 100 > above.min()


def test_align_command(tmp_path, monkeypatch, capsys):
    grey_run(monkeypatch)
    a = grey_video(tmp_path / "a.mp4", warped(30, 2.0))
    b = grey_video(tmp_path / "b.mp4", warped(20, 0.7))
    out = tmp_path / "out"
    assert align_command.main([str(a), str(b), "--run", "run", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert float(printed.split("path: ")[1].split()[0]) > 0.99
    assert probe(out / "aligned.mp4").frames == 30
    assert (out / "similarity.png").read_bytes().startswith(b"\x89PNG")
    written = printed.splitlines()[-1].removeprefix("written: ").split(", ")
    assert {*written} == {str(file) for file in out.iterdir()}
    content = json.loads((out / "alignment.json").read_text())
    lines = (out / "alignment.csv").read_text().splitlines()
    assert len(content["matches"]) == len(lines) - 1 == 30
    assert content["options"] == {"open": False, "centre": False}
    page = (out / "alignment.html").read_text()
    assert "all 50 frames as pictures of up to 32 x 48 pixels" in page
    assert f"<li>{printed.splitlines()[0]}</li>" in page


def test_videos_of_two_actions_are_a_pair_of_the_page():
    def video(name, action, phases):
        record = VideoRecord(
            id=name, path=name, frames=4, fps=25.0, width=8, height=8, action=action, phases=phases
        )
        return EmbeddedVideo(record, embedded(name, np.zeros(4)).embeddings)

    labelled = np.array([0, 0, 1, 1])
    for other, phases, expected in (
        ("lift", None, ("swing", False)),
        ("lift", labelled, ("all", True)),
        ("swing", labelled, ("swing", False)),
    ):
        a, b = of_one_action(video("a", "swing", labelled), video("b", other, phases))
        assert a.record.action == b.record.action == expected[0]
        assert (a.record.phases is None) == expected[1]


def test_align_command_names_a_file_that_is_not_there(tmp_path, monkeypatch, capsys):
    grey_run(monkeypatch)
    a = grey_video(tmp_path / "a.mp4", warped(5, 1.0))
    assert align_command.main([str(a), str(tmp_path / "no.mp4"), "--run", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no.mp4" in error
    assert len(error.splitlines()) == 1


# --- retrieval ----------------------------------------------------------------------------------


def test_queries_cover_phases_actions_and_videos():
    videos = [
        *(embedded(f"a{n}", warped(30, 1.0), action="a") for n in range(3)),
        *(embedded(f"b{n}", warped(30, 1.0), action="b") for n in range(3)),
        embedded("alone", warped(30, 1.0), action="c"),
    ]
    queries = choose_queries(videos, 6)
    seen = {(videos[v].record.action, int(videos[v].record.phases[f])) for v, f in queries}
    assert seen == {(action, phase) for action in "ab" for phase in range(PHASES)}
    assert len({v for v, _ in queries}) > 2
    assert len(choose_queries(videos, 4)) == 4


def test_queries_without_labels_are_spread_over_videos():
    videos = [embedded(str(n), warped(20, 1.0), phases=False) for n in range(4)]
    assert choose_queries(videos, 3) == [(0, 3), (2, 10), (3, 16)]
    assert choose_queries(videos[:1], 3) == []


def test_nearest_frames_are_the_best_of_each_other_video_of_the_action():
    videos = [
        embedded("query", [1.0]),
        embedded("far", [0.0, 2.5, 1.9]),
        embedded("near", [0.0, 1.01, 2.9]),
        embedded("other action", [1.0], action="x"),
    ]
    found = nearest_frames(videos, (0, 0), 5)
    assert [(video, frame) for video, frame, _ in found] == [(2, 1), (1, 2)]
    assert found[0][2] == pytest.approx(np.cos(0.01 / PHASES * np.pi / 2), abs=1e-6)
    assert len(nearest_frames(videos, (0, 0), 1)) == 1


def test_retrieval_sheet_has_borders_by_phase(tmp_path):

    positions = [warped(12, 1.0), warped(9, 1.0), np.full(8, 2.5)]
    videos = [
        embedded(str(n), p, path=grey_video(tmp_path / f"{n}.mp4", p))
        for n, p in enumerate(positions)
    ]
    rows = retrieval_sheet(videos, {"all": ["x", "y", "z"]}, tmp_path / "sheet.png")
    assert rows == PHASES
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    colours = set(map(tuple, np.unique(pixels, axis=0).tolist()))
    assert {(0x2E, 0x8B, 0x57), (0xC0, 0x39, 0x2B), (0x9A, 0xA0, 0xA6)} <= colours
    assert retrieval_sheet(videos[:1], {}, tmp_path / "none.png") == 0
    assert not (tmp_path / "none.png").exists()


# --- videos of an index -------------------------------------------------------------------------


def test_ids_and_files_of_the_folder_have_their_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, frames in (("folder/sub/a.mp4", 30), ("folder/b.mp4", 20), ("loose.mp4", 10)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        grey_video(tmp_path / name, warped(frames, 1.0))
    labels = {"sub/a.mp4": {"trim": [3, 22]}, "b.mp4": {"crop": [4, 4, 20, 20]}}
    (tmp_path / "folder/labels.json").write_text(json.dumps({"videos": labels}))
    build_index("folder")
    cfg = plain_config({"data.folder": "folder"})
    names = ["sub/a.mp4", "folder/sub/a.mp4", "folder/b.mp4", "loose.mp4"]
    a, same_a, b, loose = align_command.find_records(names, cfg)
    assert a.id == same_a.id == "sub/a.mp4"
    assert a.trim == (3, 22)
    assert b.crop == (4, 4, 20, 20)
    assert (loose.id, loose.trim) == ("loose.mp4", None)
    (tmp_path / "folder/link.mp4").symlink_to(tmp_path / "loose.mp4")
    labels["link.mp4"] = {"trim": [2, 5]}
    (tmp_path / "folder/labels.json").write_text(json.dumps({"videos": labels}))
    build_index("folder")
    assert align_command.find_records(["folder/link.mp4"], cfg)[0].trim == (2, 5)
    with pytest.raises(UserError, match=r"c\.mp4: no such file, and no video of folder"):
        align_command.find_records(["c.mp4"], cfg)
    assert capsys.readouterr().err == ""
    grey_video(tmp_path / "folder/new.mp4", warped(5, 1.0))
    (stale,) = align_command.find_records(["folder/b.mp4"], cfg)
    assert stale.crop is None
    assert "folder/b.mp4 is taken without trim and crop: the index of" in capsys.readouterr().err


def test_matched_frames_are_written_with_their_times(tmp_path):
    slow, fast = warped(30, 2.0), warped(20, 0.7)
    alignment = align(embedded("a", slow), embedded("b", fast))
    outside = replace(alignment, matched=np.where(np.arange(30) < 4, -1, alignment.matched))
    write_matches(embedded("a", slow), embedded("b", fast), outside, tmp_path / "m.csv")
    head, *rows = (tmp_path / "m.csv").read_text().splitlines()
    assert head == "frame_a,frame_b,time_a,time_b,similarity"
    values = np.array([[float(x) for x in row.split(",")] for row in rows])
    assert values[:, 0].tolist() == [*range(4, 30)]
    np.testing.assert_array_equal(values[:, 1], alignment.matched[4:])
    np.testing.assert_allclose(values[:, 2:4], values[:, :2] / 25, atol=1e-4)
    between = (slow[4:] - fast[alignment.matched[4:]]) / PHASES * np.pi / 2
    np.testing.assert_allclose(values[:, 4], np.cos(between), atol=1e-4)


def test_json_holds_the_matches_the_path_and_how_they_were_made(tmp_path):
    a, b = embedded("a", warped(30, 2.0), path="x/a"), embedded("b", warped(20, 0.7), path="x/b")
    alignment = align(a, b)
    write_alignment(a, b, alignment, tmp_path / "m.json", run="run", options={"open": False})
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["a"] == {"id": "a", "path": "x/a", "frames": 30, "fps": 25.0}
    assert content["b"]["frames"] == 20
    assert (content["run"], content["options"]) == ("run", {"open": False})
    assert content["similarity"] == pytest.approx(alignment.similarity)
    assert content["straight"] == pytest.approx(alignment.straight)
    assert (content["threshold"], content["score"]) == (None, None)
    assert content["path"] == np.stack([alignment.i, alignment.j], axis=1).tolist()
    frame = int(alignment.matched[29])
    assert content["matches"][29] == {
        "frame_a": 29,
        "frame_b": frame,
        "time_a": 29 / 25,
        "time_b": frame / 25,
        "similarity": pytest.approx(float(a.embeddings[29] @ b.embeddings[frame]), abs=1e-6),
    }


def test_the_clock_of_a_trimmed_video_runs_over_what_is_left():
    whole, other = embedded("a", warped(30, 1.0)), embedded("b", warped(11, 1.0))
    record = VideoRecord(
        id="a", path="a", frames=30, fps=25.0, width=8, height=8, trim=(10, 20),
        gaps=((0, 10), (12, 13), (21, 30)),
    )  # fmt: skip
    trimmed = EmbeddedVideo(record, np.delete(whole.embeddings[10:21], 2, axis=0))
    assert stretched(trimmed, other).tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert trimmed.frames[stretched(other, trimmed)].tolist() == [
        10, 11, 13, 13, 14, 15, 16, 17, 18, 19, 20,
    ]  # fmt: skip
    (clock,) = time_index([record])
    expected = np.delete(time_index_embedding(11), 2, axis=0)
    np.testing.assert_array_equal(clock.embeddings, expected)


STAMPS = np.concatenate([np.arange(10) * 20, 200 + np.arange(6) * 100])  # ms


def test_seconds_are_the_times_of_the_frames_at_a_variable_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "v.mp4", 16, options=X264, stamps=STAMPS.tolist())
    (record,) = align_command.find_records(["v.mp4"], plain_config({"data.folder": "."}))
    np.testing.assert_allclose(record.times, STAMPS / 1000, atol=1e-6)
    assert align_command.checked(record) is record
    fewer = replace(record, frames=15, times=record.times[:15])
    np.testing.assert_allclose(align_command.checked(fewer).times, STAMPS / 1000, atol=1e-6)
    a = EmbeddedVideo(record, embedded("v", warped(16, 1.0)).embeddings)
    b = embedded("b", warped(16, 1.0))
    found = matches(a, b, align(a, b))
    assert [match["time_a"] for match in found] == (STAMPS / 1000).tolist()
    assert [match["time_b"] for match in found] == [frame / 25 for frame in range(16)]
    assert align_command.span(a, np.arange(2, 11)) == (
        "v.mp4: frames 2 to 10 of 16, 0.04 s to 0.20 s"
    )
    assert frame_row(record, 5).blocks[2].tiles[0].lines == ["10", "0.20 s"]
    assert seconds_of(record, 16) == pytest.approx(0.7 + 1 / record.fps)  # the end
    data = payload([a, EmbeddedVideo(replace(record, id="b"), a.embeddings)], {}, start=(0, 1))
    assert data["videos"][0]["times"] == (STAMPS / 1000).tolist()


def test_pictures_are_found_by_their_folder_and_by_a_pattern(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for clip, prefix in (("one", "img_"), ("two", "img_"), ("two", "flow_")):
        (tmp_path / "p" / clip).mkdir(parents=True, exist_ok=True)
        for k in range(4):
            Image.new("RGB", (32, 32)).save(f"p/{clip}/{prefix}{k:03d}.jpg")
    index = build_index("p", pictures="img_*", fps=30)
    assert [record.id for record in index.videos] == ["one", "two"]
    cfg = plain_config({"data.folder": "p"})
    names = ["p/one", "p/two", "p/two/img_*", "p/two/img_*.jpg", "two"]
    found = align_command.find_records(names, cfg)
    assert [record.id for record in found] == ["one", *["two"] * 4]
    assert {record.fps for record in found} == {30}
    assert capsys.readouterr().err == ""
    (other,) = align_command.find_records(["p/two/flow_*"], cfg)
    assert (other.fps, other.frames) == (25, 4)
