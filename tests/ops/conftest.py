import pytest


@pytest.fixture(autouse=True)
def _poison(nan_empty):
    """Every op test runs with NaN in memory that nobody has written."""
