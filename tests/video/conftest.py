import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_clips() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "videos"
    folder = Path(os.environ.get("FASTSEQ_VIDEOS", default))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder} (set FASTSEQ_VIDEOS)")
    return folder


@pytest.fixture
def engine():
    """DALI on the CPU, for frames of 48 x 48."""
    from dali_cases import engine_of  # needs DALI

    engine = engine_of(48)
    yield engine
    engine.close()
