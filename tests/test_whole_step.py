"""A whole training step, encoder and loss, under FSDP2, DDP and torch.compile: two ranks with gloo
on the CPU against one process.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import whole_step
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from whole_step import LOSSES, RANKS, WIDTH

pytestmark = [pytest.mark.process, pytest.mark.compile]

PAGE = Path(__file__).parents[1] / "docs/several_gpus.md"
# The losses that one process computes on each rank's pairs without the other rank's.
APART = [name for name in LOSSES if "over" not in name and "enqueue" not in name]
NOT_IN_ONE_GRAPH = "lrprop_loss"  # documented
NO_OPERATOR = ("tcn_loss", "intra_nce", "temporal_order_loss")  # written in plain PyTorch

EAGER = [
    *((whole_step.fsdp, name) for name in LOSSES),
    *((whole_step.ddp, name) for name in LOSSES),
]
COMPILED = [  # the others with -m slow
    (whole_step.fsdp_in_one_graph, "scl_loss over frames"),
    (whole_step.fsdp_in_one_graph, "soft_dtw softmax"),
    (whole_step.fsdp_in_one_graph, "lav_loss"),
    (whole_step.fsdp_in_graphs, "scl_loss over videos"),
    (whole_step.ddp_in_graphs, "scl_loss over frames"),
]
OTHERS = [
    *((whole_step.fsdp_in_one_graph, n) for n in LOSSES if n != NOT_IN_ONE_GRAPH),
    *((whole_step.fsdp_in_graphs, name) for name in LOSSES),
    *((whole_step.ddp_in_graphs, name) for name in LOSSES),
]
OTHERS = [case for case in OTHERS if case not in COMPILED]


def on_ranks(folder: Path, work: list[tuple[Callable, str]]) -> list[dict]:
    for name in LOSSES:  # so that numba compiles its functions once and not on each rank
        whole_step.one_process(name)
    mp.start_processes(whole_step.on_ranks, (folder, work), RANKS, start_method="spawn")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    bf16 = [(whole_step.fsdp_in_bf16, name) for name in APART]
    return on_ranks(tmp_path_factory.mktemp("ranks"), EAGER + bf16 + COMPILED)


@pytest.fixture(scope="module")
def ranks_of_others(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("others"), OTHERS)


def label(case: tuple[Callable, str]) -> str:
    return f"{case[0].__name__}-{case[1]}"


def found(ranks: list[dict], case: tuple[Callable, str]) -> list[dict]:
    """The results of both ranks, or the traceback of one as a failure."""
    results = [rank[case[0].__name__, case[1]] for rank in ranks]
    for result in results:
        assert isinstance(result, dict), result
    return results


def compare(results: list[dict], want: dict, rtol: float = 1e-12) -> None:
    for result in results:
        assert result.keys() - {"ran"} == want.keys()
        for key, right in want.items():
            largest = float(right.abs().max())
            torch.testing.assert_close(
                result[key],
                right,
                rtol=0,
                atol=rtol * max(1, largest),
                msg=lambda text, key=key: f"{key}: {text}",
            )


def compare_compiled(results: list[dict], case: tuple[Callable, str]) -> None:
    function, name = case
    compare(results, whole_step.one_process(name))
    for result in results:
        if function is whole_step.fsdp_in_one_graph:
            assert len(result["ran"]) == 1
            assert bool(result["ran"][0]) == (name not in NO_OPERATOR)
        else:  # torch breaks the graph, and some losses' operators break it too
            assert len(result["ran"]) > 1


@pytest.mark.parametrize("case", EAGER, ids=label)
def test_ranks_have_the_gradients_of_one_process(ranks, case):
    """Every loss under FSDP2 and DDP: value, gradients and queue of the second of two steps."""
    compare(found(ranks, case), whole_step.one_process(case[1]))


@pytest.mark.parametrize("name", APART)
def test_mixed_precision(ranks, name):
    """FSDP2 with bf16 weights and embeddings: the bits of the same casts in one process."""
    results = found(ranks, (whole_step.fsdp_in_bf16, name))
    for result in results:
        assert result["loss"].dtype == torch.float32
        del result["queue"]
    compare(results, whole_step.one_process_in_bf16(name), rtol=1e-6)


@pytest.mark.parametrize("case", COMPILED, ids=label)
def test_compiled_on_ranks(ranks, case):
    compare_compiled(found(ranks, case), case)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=label)
def test_every_loss_compiled_on_ranks(ranks_of_others, case):
    compare_compiled(found(ranks_of_others, case), case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scl_loss", "soft_dtw"])
def test_default_compiler_in_one_process(name, tmp_path, monkeypatch):
    """Inductor, which compiles C++ here."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    step = whole_step.make(name)
    loss = torch.compile(step, fullgraph=True)(*whole_step.batch())
    loss.backward()
    want = whole_step.one_process(name, steps=1)
    compare([whole_step.result(step, loss) | {"queue": step.queue.features}], want)


@pytest.fixture
def mesh_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["scl_loss", "soft_dtw", "otam", "vclr_loss"])
def test_parts_of_a_tensor_are_an_error(mesh_of_one, name):
    x = distribute_tensor(torch.randn(2, 4, WIDTH), mesh_of_one, [Shard(1)])
    call = functools.partial(LOSSES[name], whole_step.Step(name), x, x, torch.arange(2))
    for function in (call, torch.compile(call, backend="eager")):
        with pytest.raises(TypeError, match=rf"^{name}: .*got a DTensor.*z\.to_local\(\)"):
            function()


def printed_losses(said: str) -> torch.Tensor:
    lines = re.findall(r"^(\d) \W*\d, \d\W+([\d.]+)$", said, re.MULTILINE)
    assert [step for step, _ in lines] == ["0", "1", "2"], said
    return torch.tensor([float(loss) for _, loss in lines])


def test_example_of_the_docs(tmp_path, monkeypatch, capsys):
    """Its losses on four ranks are those of one process."""
    (code,) = re.findall(r"```py\n(# long_clips.py.*?)```", PAGE.read_text(), re.DOTALL)
    stores = [
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(2)
    ]
    arguments = (code, 4, stores[0].port, tmp_path)
    mp.start_processes(whole_step.run_script, arguments, 4, start_method="spawn")
    losses = [printed_losses((tmp_path / f"said{rank}").read_text()) for rank in range(4)]
    for name, value in whole_step.torchrun(0, 1, stores[1].port).items():
        monkeypatch.setenv(name, value)
    assert "(2, 2)" in code
    exec(code.replace("(2, 2)", "(1, 1)"), {"__name__": "__main__"})
    whole = printed_losses(capsys.readouterr().out)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[2], losses[3])
    assert not torch.equal(losses[0], losses[2])
    # Four digits are printed.
    torch.testing.assert_close((losses[0] + losses[2]) / 2, whole, rtol=0, atol=1.1e-4)
    assert whole[2] < whole[0]
