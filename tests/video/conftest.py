import pytest


@pytest.fixture
def engine():
    """DALI on the CPU, for frames of 48 x 48."""
    from dali_cases import engine_of  # needs DALI

    engine = engine_of(48)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of `grey.grey_videos`."""
    from grey import grey_videos  # needs PyAV

    return grey_videos(tmp_path_factory.mktemp("grey"))
