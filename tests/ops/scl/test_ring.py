"""scl_loss with ``group=``: four processes with gloo against one."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerance import as_accurate_as

import fastseq
from fastseq.ops.common.ring import Ring, check_engine
from fastseq.ops.scl.ring import blocks
from fastseq.ops.scl.ring.options import RingOptions, Side
from fastseq.ops.scl.ring.parts import Part
from ops.scl import ring_ranks as ring

pytestmark = [pytest.mark.process, pytest.mark.compile]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of the four ranks."""
    folder = tmp_path_factory.mktemp("ring")
    store = f"file://{folder}/store"
    mp.start_processes(ring.main, (store, folder), nprocs=ring.RANKS, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ring.RANKS)]


CASES = list(ring.cases())


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_ranks_equal_one_process(ranks, number):
    case = CASES[number]
    name = list(ring.GROUPS)[number % len(ring.GROUPS)]
    members = ring.GROUPS[name]
    data = ring.data_of(case, len(members))
    weight = data.weight
    whole = ring.differentiated(case, data.z, data.more, weight, backend="torch")
    own_values = case.split == "videos" and case.reduction == "none"
    factor = 1 if own_values else len(members)  # each rank's value counts
    for place, rank in enumerate(members):
        found = ranks[rank]["all_cases"]
        for backend in ("torch", "reference"):
            if (str(case), name, backend) not in found:
                assert backend == "reference"
                continue
            got = found[str(case), name, backend]
            loss = whole["loss"]
            expected = {
                "loss": ring.part_of(loss, data, "videos", 0, place) if own_values else loss,
                "tau": factor * whole["tau"],
            }
            for view in (0, 1):
                part = ring.part_of(whole[f"z{view + 1}"], data, case.split, view, place)
                expected[f"z{view + 1}"] = factor * part
            for key, right in expected.items():
                assert got[key].shape == right.shape, key
                assert got[key].dtype == right.dtype, key
                if case.dtype == torch.float64 and right.numel():
                    largest = factor * whole[key].abs().max().clamp(min=1e-3)
                    assert (got[key] - right).abs().max() <= 1e-12 * largest, (backend, key)


@pytest.mark.parametrize("case", [c for c in CASES if c.dtype != torch.float64], ids=str)
def test_rounding_is_that_of_plain_pytorch(ranks, case):
    """The parts joined, against float64, as accurate as the dense definition in one process."""
    name = list(ring.GROUPS)[CASES.index(case) % len(ring.GROUPS)]
    members = ring.GROUPS[name]
    data = ring.data_of(case, len(members))
    plain = ring.differentiated(case, data.z, data.more, data.weight, backend="reference")
    exact = ring.differentiated(
        case, [z.double() for z in data.z], data.more, data.weight, backend="reference"
    )
    parts = [ranks[rank]["all_cases"][str(case), name, "torch"] for rank in members]
    along = 1 if case.split == "frames" else 0
    for key in ("z1", "z2"):
        joined = torch.cat([part[key] for part in parts], along) / len(members)
        as_accurate_as(joined, plain[key], exact[key])
    as_accurate_as(parts[0]["loss"], plain["loss"], exact["loss"])


def test_torch_compile_makes_one_graph(ranks):
    assert [rank["compiled"] for rank in ranks] == [0] * ring.RANKS


def test_only_the_reference_can_be_differentiated_twice(ranks):
    for rank in ranks:
        difference, error = rank["twice"]
        assert difference < 1e-12
        assert error.startswith("RuntimeError: scl_loss: this backend cannot be differentiated")


def test_gradient_of_one_view(ranks):
    assert [rank["only_one_view"] for rank in ranks] == [0] * ring.RANKS


def test_times_out_of_reach_and_nan(ranks):
    for rank in ranks:
        isolated, nan = rank["far_apart"]
        assert isolated == 0
        assert math.isnan(nan)


def test_nothing_to_compare(ranks):
    for rank in ranks:
        assert rank["nothing"] == (0, [[0, 6, 4], 0])


def test_times_of_other_dtypes(ranks):
    assert all(rank["other_times"] < 1e-12 for rank in ranks)


def test_blocks_travel_where_the_softmax_needs_them_and_two_are_in_memory(ranks):
    hops = 2 * (ring.RANKS - 1)  # forward and backward
    for rank in ranks:
        assert rank["travelling"] == {
            "frames cross": (hops, 1),
            "frames batch": (hops, 1),
            "videos cross": (0, 0),
            "videos batch": (hops, 1),
        }


def test_videos_of_other_lengths_on_other_ranks(ranks):
    for rank in ranks:
        assert len(rank["other_lengths"]) == 4
        assert max(rank["other_lengths"].values()) < 1e-12


def test_near_columns_are_not_copied():
    sides = [Side(torch.randn(2, 3, 4), torch.arange(6).view(2, 3), None) for _ in range(2)]
    opts = RingOptions(*[None] * 4, "video", *[None] * 3, "frames")
    for pair in blocks._pairs(Part(tuple(sides)), Part(tuple(sides)), True, opts):
        for side, given in zip(pair.sides, (sides[pair.view], sides[pair.other]), strict=True):
            assert side.z.data_ptr() == given.z.data_ptr()


@pytest.mark.parametrize(
    ("engines", "device", "fits"),
    [
        ("cpu:gloo,cuda:nccl", "cpu", True),
        ("cpu:gloo,cuda:nccl", "cuda", True),
        ("cpu:gloo,cuda:gloo", "cpu", True),
        ("cuda:nccl", "cpu", False),
        ("cpu:gloo,cuda:gloo", "cuda", False),  # gloo has no send of CUDA tensors
    ],
)
def test_a_group_that_cannot_send_such_tensors_is_an_error(engines, device, fits):
    if fits:
        return check_engine("scl_loss", engines, device)
    with pytest.raises(ValueError, match=f"cannot send {device} tensors; to fix: make it with"):
        check_engine("scl_loss", engines, device)


@pytest.mark.parametrize(("name", "current"), [("cpu", -1), ("cuda:1", 1)])
def test_blocks_are_sent_with_the_current_device_of_the_tensors(monkeypatch, name, current):
    found, entered = [], []

    @contextlib.contextmanager
    def device(index):
        entered.append(index)
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(dist, "P2POp", lambda *call: call)
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda calls: found.append((*entered, calls)))
    ring = Ring.__new__(Ring)
    ring.group, ring.device = None, torch.device(name)
    x, y, none = torch.ones(1), torch.ones(2), torch.ones(0)
    ring._exchange([x, none], [y], 5, 6)
    assert found == [(current, [(dist.isend, x, 5, None), (dist.irecv, y, 6, None)])]
    ring._exchange([none], [none], 5, 6)
    assert len(found) == 1


def test_the_import_needs_no_communication():
    """Some builds of torch, for example for Jetson, have none."""
    code = (
        "import torch, torch.distributed as dist\n"
        "for name in ('Work', 'ReduceOp', 'ProcessGroup', 'P2POp'): delattr(dist, name)\n"
        "import fastseq; z = torch.eye(3); print(fastseq.scl_loss(z, z).item())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("D", "ValueError: scl_loss: rank 2 of the group passed another D than rank 0 (3 and 4)"),
        ("N", "ValueError: scl_loss: rank 2 of the group passed another N than rank 0 (1 and 2)"),
        ("dtype", "passed another dtype than rank 0 (torch.float32 and torch.float64); pass"),
        ("backend", "passed another kind of backend than rank 0; pass the same on all ranks"),
        (
            "options",
            "ValueError: scl_loss: rank 2 of the group passed another temperature than rank 0",
        ),
        ("split", "passed another split than rank 0; pass the same on all ranks"),
        ("tensor", "passed another kind of temperature (tensor or number) than rank 0; pass"),
        ("times", "rank 2 of the group passed t1 and t2, rank 0 did not; pass them on all ranks"),
        ("variance", "passed another kind of variance (tensor or number) than rank 0; pass"),
        ("gradient", "rank 2 of the group needs gradients, rank 0 does not, so its backward would"),
        ("vmap", "RuntimeError: scl_loss: group= does not work inside torch.func transforms"),
        ("group", "TypeError: scl_loss: group must be a process group of torch.distributed"),
        ("what", "ValueError: scl_loss: split must be"),
        ("outside", "ValueError: scl_loss: this process is not a rank of the group; call only"),
    ],
)
def test_every_rank_reports_calls_that_do_not_fit(ranks, name, words):
    for rank in ranks:
        assert words in rank["errors"][name]


def test_a_lost_rank_is_an_error_on_its_neighbours(ranks):
    texts = [rank["lost"] for rank in ranks]
    assert texts[ring.RANKS - 1] == ""
    for text in texts[:-1]:
        assert text.startswith("RuntimeError: scl_loss: rank ")
        assert "lost contact" in text


def test_the_module_passes_group_and_split():
    z = torch.eye(3)
    with pytest.raises(TypeError, match="group must be a process group"):
        fastseq.nn.SCLLoss()(z, z, group="all")
    with pytest.raises(ValueError, match="split must be one of"):
        fastseq.nn.SCLLoss()(z, z, split="time")


def test_a_group_is_not_needed():
    z = torch.randn(2, 5, 3)
    assert fastseq.scl_loss(z, z, group=None) == fastseq.scl_loss(z, z)
