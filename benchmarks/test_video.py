"""Reading clips from files: the table that the pages quote."""

import pytest

from benchmarks import video


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "rendered.mp4"
    video.render(path)
    return path


ROWS: list[dict[str, str]] = []


@pytest.mark.parametrize("length", video.LENGTHS)
def test_clips_per_second(length, rendered, request):
    ROWS.extend(video.measure(rendered, length))
    print(f"\n{video.table(ROWS)}")
    if length == video.LENGTHS[-1]:
        video.write(ROWS, request.config.getoption("--results"))
