"""scl_loss with ``group=`` and the Triton kernels: two processes with gloo against one.

The kernels are interpreted on every machine, since gloo's tensors are on the CPU.
"""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerance import as_accurate_as, interpreted

import fastseq
from ops.scl.ring_ranks import Case, data_of, options_of, part_of

pytestmark = [pytest.mark.process, pytest.mark.interpreter]
RANKS = 2
FP32, BF16 = torch.float32, torch.bfloat16
CE = (("objective", "ce"), ("normalize", False), ("temperature", 2.0), ("learned", True))
LAPLACE = (("temperature", 0.01), ("target", "laplace"))
CASES = (
    Case("frames", "cross", "mean", "times valid", (), FP32),
    Case("frames", "cross", "none", "", CE, FP32),
    Case("frames", "video", "paper", "times", LAPLACE, FP32),
    Case("frames", "cross", "mean", "times", (), BF16),
    Case("videos", "batch", "mean", "valid", (), FP32),
    Case("videos", "batch", "none", "", (("target", "box"), ("variance", 3.0)), FP32),
)
# exp2 of targets' exponents of up to 149, see test_triton.py.
EXPONENT = 5e-6


def differentiated(case, z, more, weight, **options):
    """Value and gradients of a call. "learned": with that of the temperature."""
    z1, z2 = (x.clone().requires_grad_() for x in z)
    options = options_of(case) | options
    number = options.pop("temperature", 0.1)
    tau = torch.tensor(number, requires_grad=True)
    learned = options.pop("learned", False)
    loss = fastseq.scl_loss(z1, z2, **more, temperature=tau if learned else number, **options)
    total = (loss * weight).sum() if case.reduction == "none" else loss
    total.backward()
    tau = tau.grad if learned else tau.detach()
    return {"loss": loss.detach(), "z1": z1.grad, "z2": z2.grad, "tau": tau}


def main(rank, store, folder):
    import interpreted

    interpreted.speed_up()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    results = []
    for case in CASES:
        data = data_of(case, RANKS)

        def part(x, view, case=case, data=data):
            return part_of(x, data, case.split, view, rank)

        z = [part(x, view) for view, x in enumerate(data.z)]
        more = {name: part(x, int(name[-1]) - 1) for name, x in data.more.items()}
        weight = part(data.weight, 0) if case.split == "videos" else data.weight
        more |= {"group": dist.group.WORLD, "split": case.split, "backend": "triton"}
        results.append(differentiated(case, z, more, weight))
    torch.save(results, folder / f"{rank}.pt")
    os._exit(0)  # gloo's threads may hang at an ordinary exit


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning")  # of NumPy, for infinities
        store = f"file://{folder}/store"
        mp.start_processes(main, (store, folder), nprocs=RANKS, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_ranks_equal_one_process(ranks, number):
    case = CASES[number]
    data, found = data_of(case, RANKS), [rank[number] for rank in ranks]
    assert all(0 < places[1] < places[2] for places in data.places)  # both ranks have frames
    plain = differentiated(case, data.z, data.more, data.weight, backend="reference")
    exact = [z.double() for z in data.z]
    exact = differentiated(case, exact, data.more, data.weight, backend="reference")
    own = case.split == "videos" and case.reduction == "none"
    count = 1 if own else RANKS  # each rank's value counts
    along = 1 if case.split == "frames" else 0
    floor = EXPONENT if case.dtype == FP32 else interpreted(case.dtype, "cpu")
    for key in ("z1", "z2"):
        whole = torch.cat([part[key] for part in found], along) / count
        assert whole.dtype == case.dtype
        as_accurate_as(whole, plain[key], exact[key], floor=floor, what=(key,))
    losses = [part["loss"] for part in found]
    if own:
        losses = [torch.cat(losses)]
    for loss in losses:
        as_accurate_as(loss, plain["loss"], exact["loss"], what=("loss",))
    if dict(case.options).get("learned"):
        slope = sum(part["tau"] for part in found) / count
        as_accurate_as(slope, plain["tau"], exact["tau"].double(), floor=1e-5, what=("tau",))
