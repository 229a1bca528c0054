"""`view`: the frames that it shows, the labels file that it writes, how it ends."""

import io
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL", reason='needs Pillow: pip install "fastseq[train]"')
import av
from PIL import Image
from video.counter_video import X264, encode, read_counter, remux
from view_client import CONTENT, Client, serving, write_folder

from fastseq.video import probe, read_frames
from fastseq.video.gaps import frames_of
from training import view
from training.data.index import build_index
from training.data.labels import LabelError, read_labels
from training.labelling.folder import VideoFolder
from training.labelling.frames import CHUNK, Pictures
from training.labelling.server import LabelServer


@pytest.fixture
def folder(videos, tmp_path):
    return write_folder(videos, tmp_path / "clips")


@pytest.fixture
def client(folder):
    with serving(folder) as client:
        yield client


def test_what_is_saved_is_what_training_reads(client, folder):
    new = {"action": "jump", "split": "test", "boundaries": [2, 4], "trim": [1, 5]}
    status, answer = client.save({"2": new})
    assert status == 200
    labels = read_labels(folder / "labels.json")
    # All else stays: the other videos, absent ones too, and keys that training does not know.
    assert labels.content == CONTENT | {"videos": CONTENT["videos"] | {"sub/c.mp4": new}}
    assert answer["version"] == client.get("state")["version"]
    line = '"sub/c.mp4": {"action": "jump", "split": "test", "boundaries": [2, 4], "trim": [1, 5]}'
    assert line in (folder / "labels.json").read_text()
    assert "ünclear" in (folder / "labels.json").read_text(encoding="utf-8")

    assert client.save({"0": {**CONTENT["videos"]["a.mp4"], "boundaries": [9, 30]}})[0] == 200
    (folder / "gone.mp4").write_bytes((folder / "a.mp4").read_bytes())
    records = {record.id: record for record in build_index(folder).videos}
    assert records["a.mp4"].phases.tolist() == [0] * 9 + [1] * 21
    assert records["sub/c.mp4"].phases.tolist() == [-1, 0, 1, 1, 2, 2]
    assert records["sub/c.mp4"].trim == (1, 5)
    assert records["b.mp4"].phases.tolist() == CONTENT["videos"]["b.mp4"]["phases"]


def test_begins_without_labels(client, folder):
    (folder / "labels.json").unlink()
    state = client.get("state")
    assert (state["entries"], state["classes"]) == ([None] * 3, {})
    entry = {"action": "run", "boundaries": [3]}
    assert client.save({"1": entry}, classes={"run": ["slow", "fast"]})[0] == 200
    labels = read_labels(folder / "labels.json")
    assert labels.content == {
        "classes": {"run": ["slow", "fast"]},
        "videos": {"b.mp4": entry},
    }
    assert not (folder / "labels.json.bak").exists()


def test_seconds_and_segments_are_edited_in_frames(client, folder):
    """a has 30 frames, 25 in a second. What is saved is in frames, the others stay as they are."""
    others = {"b.mp4": {"action": "jump", "segments": [[0.08, 0.24, "land"]]}}
    timed = {"action": "jump", "boundaries": [0.4, 0.96], "trim": [0.09, 1.05]}
    content = {**CONTENT, "unit": "seconds", "videos": {"a.mp4": timed, **others}}
    (folder / "labels.json").write_text(json.dumps(content))
    facts = client.get("facts/0")
    assert facts["entry"] == {"action": "jump", "boundaries": [10, 24], "trim": [3, 26]}
    assert facts["problems"] == []
    assert client.get("facts/1")["entry"] == {"action": "jump", "segments": [[2, 6, 2]]}
    assert client.get("facts/2")["entry"] is None
    new = {**facts["entry"], "boundaries": [11, 24], "split": "val"}
    assert client.save({"0": new})[0] == 200
    saved = json.loads((folder / "labels.json").read_text())
    assert saved == content | {"videos": {"a.mp4": {"unit": "frames", **new}, **others}}
    a, b, _ = build_index(folder).videos
    assert a.phases.tolist() == [-1] * 3 + [0] * 8 + [1] * 13 + [2] * 3 + [-1] * 3
    assert (a.split, a.trim) == ("val", (3, 26))
    assert b.phases.tolist() == [-1] * 2 + [2] * 4 + [-1] * 6


def test_seconds_that_do_not_fit_come_without_their_times(client, folder):
    wrong = {"action": "jump", "unit": "seconds", "boundaries": [9], "trim": [0.01, 0.02]}
    content = {**CONTENT, "videos": {"a.mp4": wrong}}
    (folder / "labels.json").write_text(json.dumps(content))
    facts = client.get("facts/0")
    assert facts["entry"] == {"action": "jump", "unit": "seconds"}
    boundary, trim = facts["problems"]
    assert "boundary 9 s lies past the video's 30 frames, which end at 1.2 s" in boundary
    assert "trim [0.01, 0.02] contains no frame" in trim


def test_class_sets_are_shown_and_not_changed(client, folder):
    sets = {"fine": {"jump": ["p", "q"]}, "coarse": {"jump": ["x"]}}
    parts = {"coarse": {"boundaries": []}, "fine": {"segments": [[0, 10, "q"]]}}
    content = {"class_sets": sets, "videos": {"a.mp4": {"action": "jump", "labels": parts}}}
    before = json.dumps(content)
    (folder / "labels.json").write_text(before)
    state = client.get("state")
    assert state["classes"] == sets["fine"]
    assert "labels.json has class sets; the first one is shown here" in state["read_only"]
    shown = client.get("facts/0")["entry"]
    assert shown == {"action": "jump", "labels": parts, "segments": [[0, 10, 1]]}
    status, answer = client.save({"1": {"split": "test"}})
    assert status == 409
    assert "has class sets" in answer["problems"][""][0]
    assert (folder / "labels.json").read_text() == before
    (folder / "labels.json").unlink()
    assert client.get("state")["read_only"] == ""


def test_labels_can_be_removed(client, folder):
    assert client.save({"0": None, "2": None})[0] == 200
    assert [*read_labels(folder / "labels.json").videos] == ["b.mp4", "gone.mp4"]


def test_keeps_the_file_that_was_there_at_the_start(client, folder):
    before = (folder / "labels.json").read_bytes()
    for frame in (3, 4):
        assert client.save({"0": {"action": "jump", "boundaries": [frame]}})[0] == 200
        assert (folder / "labels.json.bak").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        *("a.mp4", "b.mp4", "labels.json", "labels.json.bak")
    ]


def test_overwrites_no_copy_of_an_earlier_start(folder):
    path = folder / "labels.json"
    (folder / "labels.json.bak").write_text("the user's")
    (folder / "labels.json.bak.1").symlink_to("nowhere")
    kept = {}
    for number in (2, 3):
        path.chmod(0o640)
        kept[f"labels.json.bak.{number}"] = path.read_bytes()
        with serving(folder) as client:
            assert client.save({"0": {"trim": [9, 1]}})[0] == 409  # nothing is written or copied
            for frame in (number, 5):
                status, answer = client.save({"0": {"action": "jump", "boundaries": [frame]}})
                assert (status, answer["backup"]) == (200, f"labels.json.bak.{number}")
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert {(folder / name).stat().st_mode & 0o777 for name in kept} == {0o640}
    assert (folder / "labels.json.bak").read_text() == "the user's"
    assert sorted(path.name for path in folder.glob("labels.json*")) == [
        *("labels.json", "labels.json.bak", "labels.json.bak.1", *kept)
    ]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"action": "jump", "boundaries": [20, 10]}, "boundaries [20, 10] must not decrease"),
        ({"action": "jump", "boundaries": [1, 2, 3]}, "3 boundaries make 4 phases"),
        ({"action": "jump", "boundaries": [31]}, "boundary 31 lies past the video's 30 frames"),
        ({"action": "jump", "boundaries": [None]}, "'boundaries' must be a list of whole numbers"),
        ({"action": "walk", "boundaries": [1]}, '"classes" does not list the phases of the action'),
        ({"trim": [0, 30]}, "trim [0, 30] lies past the video's 30 frames"),
        ({"crop": [0, 0, 49, 2]}, "crop [0, 0, 49, 2] reaches past the picture"),
        ({"split": "validation"}, "split is 'validation'"),
        ({"boundary": [1]}, "unknown key 'boundary'"),
    ],
)
def test_writes_nothing_that_prepare_would_refuse(client, folder, entry, problem):
    before = (folder / "labels.json").read_bytes()
    status, answer = client.save({"0": entry})
    assert status == 409
    assert set(answer["problems"]) == {"a.mp4"}
    assert problem in answer["problems"]["a.mp4"][0]
    assert (folder / "labels.json").read_bytes() == before
    assert not list(folder.glob(".*.part"))


def test_a_phase_that_other_videos_have_stays(client, folder):
    status, answer = client.save({}, classes={"jump": ["stand", "fly"]})
    assert status == 409
    assert answer["problems"][""] == [
        "a.mp4: 2 boundaries make 3 phases, but the action 'jump' has 2 (stand, fly)"
    ]


@pytest.mark.parametrize("change", ["edited", "removed", "damaged"])
def test_does_not_overwrite_labels_that_changed_on_disk(client, folder, change):
    version = client.get("state")["version"]
    path = folder / "labels.json"
    if change == "edited":
        path.write_text(json.dumps(CONTENT | {"source": "another"}))
    elif change == "removed":
        path.unlink()
    else:
        path.write_text("{")
    before = path.read_bytes() if path.exists() else None
    body = json.dumps({"version": version, "classes": {}, "entries": {"0": None}}).encode()
    status, _, content = client.request("POST", "save", body)
    answer = json.loads(content)
    assert (status, answer["changed"]) == (409, True)
    assert "has changed on disk" in answer["error"]
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("exists", [True, False])
def test_writes_through_no_link(client, folder, tmp_path, exists):
    outside = tmp_path / "outside.json"
    (folder / "labels.json").rename(outside)
    if not exists:
        outside.unlink()
    (folder / "labels.json").symlink_to(outside)
    before = outside.read_bytes() if exists else None
    assert "is a link" in client.get("state")["read_only"]
    status, answer = client.save({"0": None})
    assert status == 409
    assert "is a link" in answer["error"]
    assert (outside.read_bytes() if outside.exists() else None) == before
    assert (folder / "labels.json").is_symlink()


def test_says_what_does_not_fit_before_anything_is_changed(client, folder):
    content = CONTENT | {"videos": {"a.mp4": {"action": "jump", "boundaries": [99]}}}
    (folder / "labels.json").write_text(json.dumps(content))
    (folder / "sub" / "c.mp4").write_bytes(b"no video")
    assert client.get("facts/2")["reason"] == (
        "not a video file, or cut off before its index (FFmpeg cannot open it)"
    )
    client.server.folder.info(1)
    assert "boundary 99" in client.get("facts/0")["problems"][0]
    facts = {one["number"]: one for one in client.get("known/0")["facts"]}
    assert len(facts) == 3
    assert "boundary 99 lies past the video's 30 frames" in facts[0]["problems"][0]
    assert (facts[1]["frames"], facts[1]["problems"]) == (12, [])
    assert client.get("known/3") == {"facts": [], "count": 3, "of": 3}
    # Another video can be labelled all the same.
    assert client.save({"1": {"split": "test"}})[0] == 200


def test_labels_of_absent_videos_are_named(client):
    (line,) = client.get("state")["absent"]
    assert line.startswith("gone.mp4: no such video in the folder")


def pictures_of(client, number, chunk):
    status, headers, content = client.request("GET", f"frames/{number}/{chunk}")
    assert status == 200
    sizes = [int(size) for size in headers["X-Sizes"].split(",")]
    assert sum(sizes) == len(content)
    stream = io.BytesIO(content)
    return [np.asarray(Image.open(io.BytesIO(stream.read(size)))) for size in sizes]


def test_frames_are_those_of_training(tmp_path):
    """Between B-frames, behind an edit list, and over the limits of chunks."""
    whole = encode(tmp_path / "whole.mp4", 2 * CHUNK + 5, options=X264)
    remux(whole, tmp_path / "cut.mp4", first_packet=12, shift=17)
    folder = VideoFolder(tmp_path)
    assert folder.videos == ["cut.mp4", "whole.mp4"]
    server = LabelServer(folder, "")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        client = Client(server)
        for number, name in enumerate(folder.videos):
            count = client.get(f"facts/{number}")["frames"]
            shown = []
            for chunk in reversed(range(-(-count // CHUNK))):
                shown = [*map(read_counter, pictures_of(client, number, chunk)), *shown]
            assert shown == [*map(read_counter, read_frames(tmp_path / name))]
        assert shown == [*range(2 * CHUNK + 5)]
    finally:
        server.shutdown()
        server.server_close()
        folder.close()


def test_pictures_are_decoded_once_and_dropped_when_there_are_many(tmp_path, monkeypatch):
    info = probe(encode(tmp_path / "whole.mp4", 3 * CHUNK, options=X264))
    read = []
    decode = Pictures._read

    def count(self, info, number):
        read.append(number)
        return decode(self, info, number)

    monkeypatch.setattr(Pictures, "_read", count)
    pictures = Pictures(24)
    first = pictures.chunk(info, 0)
    assert pictures.chunk(info, 0) is first
    assert read == [0]
    assert Image.open(io.BytesIO(first[0])).size == (32, 24)
    size = pictures.bytes
    pictures.kept_bytes = int(2.5 * size)
    for number in (1, 2, 0):
        pictures.chunk(info, number)
    assert read == [0, 1, 2, 0]
    assert pictures.bytes <= pictures.kept_bytes


def test_damaged_frames_have_no_picture(tmp_path):
    """Damage that the packets do not show is found when the frames are decoded."""
    path = encode(tmp_path / "a.mp4", 48, options=X264)
    content = bytearray(path.read_bytes())
    timeline = probe(path).timeline
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts == timeline.pts[14]]
        start = packets[0].pos
    content[start + 4 : start + packets[0].size] = b"\xff" * (packets[0].size - 4)
    path.write_bytes(content)
    info = probe(path)
    damaged = probe(path, decode=True)
    assert (info.gaps, info.frames) == ((), 48)
    assert damaged.gaps
    pictures = Pictures(360)
    shown = [*pictures.chunk(info, 0), *pictures.chunk(info, 1)]
    assert [number for number, one in enumerate(shown) if one] == frames_of(damaged).tolist()
    for number in frames_of(damaged).tolist():
        assert read_counter(np.asarray(Image.open(io.BytesIO(shown[number])))) == number


def as_user(monkeypatch, act):
    """`act(client)` in a thread, once `view` opens the browser."""

    def start(uri):
        page = Path(unquote(urlsplit(uri).path))
        url = re.search(r"url=([^\"]+)", page.read_text())[1]

        def run():
            parts = urlsplit(url)
            client = Client.__new__(Client)
            client.port, client.host = parts.port, parts.netloc
            client.server = type("Server", (), {"token": parts.path.strip("/")})
            act(client)

        threading.Thread(target=run).start()

    monkeypatch.setattr("webbrowser.open", start)
    monkeypatch.setenv("DISPLAY", ":0")


def test_ends_on_ctrl_c_when_all_is_saved(folder, monkeypatch, capsys):
    def act(client):
        client.save({"0": None})
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    as_user(monkeypatch, act)
    assert view.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{folder}: 3 videos, 2 with phase labels" in out
    assert "open http://127.0.0.1:" in out
    assert "ended; everything is saved" in out
    assert "the labels before this start: labels.json.bak\n" in out
    assert f"`python -m training.prepare {folder}`" in out


def test_a_second_ctrl_c_at_the_end_is_none(folder, monkeypatch, capsys):
    """Stopping the server takes half a second."""
    shutdown = LabelServer.shutdown

    def interrupt(*server):
        if server:
            shutdown(*server)
        raise KeyboardInterrupt

    monkeypatch.setattr(LabelServer, "shutdown", interrupt)
    monkeypatch.setattr(view, "_until_interrupted", interrupt)
    (folder / "b.mp4").unlink()
    (folder / "sub" / "c.mp4").unlink()
    content = {**CONTENT, "videos": {"a.mp4": {"action": "jump", "split": "test"}}}
    (folder / "labels.json").write_text(json.dumps(content))
    assert view.main([str(folder), "--no-browser"]) == 0
    captured = capsys.readouterr()
    assert f"{folder}: 1 video, 0 with phase labels" in captured.out
    assert "interrupted" not in captured.err


def test_ctrl_c_warns_of_what_is_not_saved(folder, monkeypatch, capsys):
    reported = threading.Event()

    def act(client):
        body = b'{"tab": "a", "count": 1, "videos": [2], "classes": true}'
        assert client.request("POST", "unsaved", body)[0] == 200
        reported.set()

    def interrupt():
        assert reported.wait(20)
        raise KeyboardInterrupt

    as_user(monkeypatch, act)
    monkeypatch.setattr(view, "_until_interrupted", interrupt)
    assert view.main([str(folder)]) == 130
    out = capsys.readouterr().out
    assert "not saved yet: sub/c.mp4, names of phases. Press s in the page" in out
    assert "ended; not saved: sub/c.mp4, names of phases" in out
    assert "training.prepare" not in out


def test_the_browser_gets_the_token_in_a_private_file(folder, monkeypatch, capsys):
    opened = []

    def look(uri):
        page = Path(unquote(urlsplit(uri).path))
        modes = [path.stat().st_mode & 0o777 for path in (page, page.parent)]
        opened.append((uri, page, page.read_text(), modes))

    def interrupt():
        assert opened[0][1].exists()  # a browser may be slow to start
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", look)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(view, "_until_interrupted", interrupt)
    assert view.main([str(folder)]) == 0
    ((uri, page, content, modes),) = opened
    url = re.search(r"open (\S+)", capsys.readouterr().out)[1]
    assert uri.startswith("file:///")
    assert url not in uri
    assert urlsplit(url).path.strip("/") not in uri
    assert f'content="0; url={url}"' in content
    assert modes == [0o600, 0o700]
    assert not page.parent.exists()


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda f: None, ["nowhere"], "nowhere is not a folder; expected one with videos"),
        (lambda f: [p.unlink() for p in f.rglob("*.mp4")], [], "holds no videos"),
        (lambda f: (f / "labels.json").write_text("{"), [], "not a readable JSON file"),
    ],
)
def test_wrong_use_is_one_line(folder, capsys, prepare, arguments, message):
    prepare(folder)
    assert view.main([*(arguments or [str(folder)]), "--no-browser"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_port_that_is_taken_is_named(client, folder, capsys):
    assert view.main([str(folder), "--port", str(client.port)]) == 2
    error = capsys.readouterr().err
    assert f"port {client.port} of 127.0.0.1 cannot be used" in error
    assert "give another --port" in error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
@pytest.mark.parametrize("arguments", [[], ["--no-browser"]])
def test_opens_no_browser_unasked_or_without_a_screen(folder, monkeypatch, capsys, arguments):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if arguments:
        monkeypatch.setenv("DISPLAY", ":0")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "_until_interrupted", interrupt)
    assert view.main([str(folder), *arguments]) == 0
    assert opened == []
    assert "open http://127.0.0.1:" in capsys.readouterr().out


def test_saving_checks_as_read_labels_does(client, folder):
    """The form of the file is checked as it is written, by the function that training uses."""
    bad = {"0": {"action": "jump", "boundaries": [1.5]}}
    _, answer = client.save(bad)
    content = CONTENT | {"videos": {"a.mp4": bad["0"]}}
    (folder / "labels.json").write_text(json.dumps(content))
    with pytest.raises(LabelError) as error:
        read_labels(folder / "labels.json")
    assert str(error.value).endswith(f"a.mp4: {answer['problems']['a.mp4'][0]}")
