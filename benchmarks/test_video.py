"""Reading clips from files; the table is what is quoted."""

import pytest

from benchmarks import video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video")


ROWS: list[dict[str, str]] = []


@pytest.mark.parametrize("length", video.LENGTHS)
def test_clips_per_second(length, folder, request):
    pytest.importorskip("av")
    ROWS.extend(video.measure(folder, length))
    print(f"\n{video.table(ROWS)}")
    if length == video.LENGTHS[-1]:
        video.write(ROWS, request.config.getoption("--results"))
