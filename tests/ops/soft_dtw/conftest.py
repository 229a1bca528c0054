import shutil

import pytest

from ops.soft_dtw.host import compile_library


@pytest.fixture(scope="session")
def fibers(tmp_path_factory):
    """The CUDA kernels as a shared library in which threads are fibers."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return compile_library("g++", tmp_path_factory.mktemp("soft_dtw"), "fibers")
