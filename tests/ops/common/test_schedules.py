"""Options that change as Python floats, under torch.compile: compiled for the first value, once
more for all others, and not for every value.
"""

import pytest
import torch
from torch.nn.functional import normalize

import fastseq
from ops.soft_dtw.cases import randn

pytestmark = pytest.mark.compile

X, Y = randn(2, 12, 4, seed=1).double(), randn(2, 12, 4, seed=2).double()
QUEUE = normalize(randn(20, 4, seed=3), dim=-1).double()
INTER, INTRA = (Y[:, 0], QUEUE), (Y[:, 1], Y[:, 2:5])


def scaled_soft_dtw(x, gamma):
    root = gamma**0.5
    return gamma * fastseq.soft_dtw(x / root, Y / root, gamma=1, reduction="sum")


def scaled_idm(z, margin):
    return margin * fastseq.contrastive_idm(z / margin**0.5, margin=1)


# Options that can be scheduled, as a function of embeddings and the option.
SCHEDULES = {
    "scl_loss-temperature": lambda x, tau: fastseq.scl_loss(x, Y, temperature=tau),
    "scl_loss-variance": lambda x, var: fastseq.scl_loss(x, Y, variance=var),
    "tcc_loss-temperature": lambda x, tau: fastseq.tcc_loss(x, Y, temperature=tau),
    "queue_nce-temperature": lambda x, tau: fastseq.queue_nce(x[:, 0], *INTER, temperature=tau),
    "vclr_loss-temperature": lambda x, tau: fastseq.vclr_loss(
        inter=(x[:, 0], *INTER), intra=(x[:, 1], *INTRA), temperature=tau
    ),
    # The operators of these take their numbers as constants, so the number is applied outside of
    # them.
    "soft_dtw-gamma": scaled_soft_dtw,
    "contrastive_idm-margin": scaled_idm,
    "contrastive_idm-window": lambda z, window: fastseq.contrastive_idm(
        z, window=window * torch.ones(())
    ),
}
PLAIN = {
    "soft_dtw-gamma": lambda x, gamma: fastseq.soft_dtw(x, Y, gamma=gamma, reduction="sum"),
    "contrastive_idm-margin": lambda z, margin: fastseq.contrastive_idm(z, margin=margin),
    "contrastive_idm-window": lambda z, window: fastseq.contrastive_idm(z, window=window),
}


class Scheduled(torch.nn.Module):
    """Keeps the number in an attribute."""

    def __init__(self, function):
        super().__init__()
        self.function, self.number = function, 0.0

    def forward(self, x):
        return self.function(x, self.number)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *((name, "attribute") for name in SCHEDULES),
        ("queue_nce-temperature", "argument"),
        ("scl_loss-variance", "integer argument"),
    ],
)
def test_compiled_twice_for_all_floats(name, place):
    from torch._dynamo.testing import CompileCounterWithBackend

    function, plain = SCHEDULES[name], PLAIN.get(name, SCHEDULES[name])
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    module = Scheduled(function)
    traced = module if place == "attribute" else function
    compiled = torch.compile(traced, fullgraph=True, backend=counter)
    numbers = (9, 7, 5, 4, 3, 2) if place == "integer argument" else (1.0, 0.9, 0.7, 0.5, 0.3, 0.2)
    for number in numbers:
        module.number = number
        leaves = [X.clone().requires_grad_() for _ in range(2)]
        given = leaves[1:] if place == "attribute" else (leaves[1], number)
        losses = plain(leaves[0], number), compiled(*given)
        results = [
            (y.detach(), *torch.autograd.grad(y, z)) for y, z in zip(losses, leaves, strict=True)
        ]
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert counter.frame_count <= 2
