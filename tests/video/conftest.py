import pytest


@pytest.fixture
def engine():
    """DALI on the CPU, for frames of 48 x 48."""
    from dali_cases import engine_of  # needs DALI

    engine = engine_of(48)
    yield engine
    engine.close()
