"""Peak memory of a loss and of its backward."""

import pytest
import torch
from peak import growth, peaks
from torch.nn.functional import normalize

import fastseq


@pytest.mark.parametrize("temperature", [0.1, 0.01], ids=["shift", "running maximum"])
def test_no_matrix_of_queries_and_queue(temperature):
    def prepare(length, backend):
        leaves = torch.randn(256, 128), torch.randn(256, 3, 128)
        q, positives = (normalize(z, dim=-1).requires_grad_() for z in leaves)
        queue = normalize(torch.randn(length, 128), dim=1)
        kw = {"temperature": temperature, "backend": backend}
        return lambda: fastseq.queue_nce(q, positives, queue, **kw)

    assert max(peaks(prepare(16384, "torch"))) < 15e6  # one float32 matrix takes 17e6
    # An additional matrix of one byte per pair would make the ratio at least 1.2.
    assert max(growth(lambda n: prepare(n, "torch"), 8192)) < 1.1
    # The measurement does detect matrices.
    assert min(growth(lambda n: prepare(n, "reference"), 512)) > 1.8
