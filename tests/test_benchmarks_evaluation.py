"""The benchmark of the evaluation's times, on a few short videos."""

import re

from benchmarks import evaluation


def test_every_metric_has_a_row(capsys):
    evaluation.main(["--videos", "6", "--frames", "12", "--dim", "4", "--rounds", "1"])
    out, bars = capsys.readouterr()
    for name in evaluation.metrics(1):
        (row,) = [line for line in out.splitlines() if line.startswith(name)]
        assert re.search(r" \d+\.\d\d +\d+\.\d{3} +\d+ +\d+\.\d h +\d+ min$", row)
    assert "first call" in out
    assert "comparing videos: 100%" in bars


def test_pairs_of_frames():
    videos = evaluation.random_videos(3, 10, 2)
    a, b, c = (len(video.phases) for video in videos)
    assert evaluation.frame_pairs(videos) == a * b + a * c + b * c
