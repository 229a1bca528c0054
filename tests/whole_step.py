"""One training step of a tiny encoder with each loss, in one process or on ranks.

A step is a module: ``step(x, y)`` embeds the frames of N pairs of clips and returns the loss.
"""

import contextlib
import functools
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastseq

RANKS, PAIRS, FRAMES, CHANNELS, WIDTH, QUEUE = 2, 4, 9, 5, 6, 12

Loss = Callable[["Step", Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention over the frames of a clip."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        return h + self.out(F.scaled_dot_product_attention(q, k, v))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(CHANNELS, WIDTH)
        self.block = Block()

    def forward(self, frames: Tensor) -> Tensor:
        return self.block(self.stem(frames))


class Step(nn.Module):
    """The embeddings and the loss ``name``, with what else that loss needs."""

    def __init__(self, name: str):
        super().__init__()
        self.encoder = Encoder()
        self.loss = LOSSES[name]
        if name == "scl_loss over frames":  # a rank embeds its frames without those of others
            self.encoder.block = nn.Linear(WIDTH, WIDTH)
        if name.startswith("scl_loss"):
            # FSDP2 shards no parameter of shape ().
            self.log_temperature = nn.Parameter(torch.full((1,), -1.0))
        self.order = None
        if name in ("temporal_order_loss", "vclr_loss"):
            self.order = nn.Linear(2 * 3 * WIDTH, 4)
        self.queue = fastseq.nn.FeatureQueue(QUEUE, WIDTH)

    def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self, self.encoder(x), self.encoder(y), labels)


def scl(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.scl_loss(x, y, temperature=temperature(step))


def scl_over_frames(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.scl_loss(x, y, temperature=temperature(step), group=group())


def scl_over_videos(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.scl_loss(
        x, y, temperature=temperature(step), negatives="batch", group=group(), split="videos"
    )


def temperature(step: Step) -> Tensor:
    return step.log_temperature.exp().squeeze(0)


def group() -> dist.ProcessGroup | None:
    return dist.group.WORLD if dist.is_initialized() else None


def queue_nce(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.queue_nce(x[:, 0], y[:, 0], step.queue.features)


def queue_nce_and_enqueue(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    loss = queue_nce(step, x, y, labels)
    step.queue.enqueue(y[:, 0])
    return loss


def order(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.temporal_order_loss(x[:, :3], y[:, :3], labels, step.order)


def vclr(step: Step, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return fastseq.vclr_loss(
        inter=(x[:, 0], y[:, 0], step.queue.features),
        intra=(x[:, 0], y[:, 0], y[:, 1:4]),
        video=(x.mean(1), y.mean(1), step.queue.features),
        order=(x[:, :3], y[:, :3], labels, step.order),
    )


def costs(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, :, None] - y[:, None]).square().sum(-1)


def tcn(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([fastseq.tcn_loss(a, b) for a, b in zip(x, y, strict=True)]).mean()


def crossed(x: Tensor, y: Tensor) -> Tensor:
    """Each x with its own y: a batch of both would cross the pairs of one rank alone."""
    pairs = zip(x.split(1), y.split(1), strict=True)
    return torch.cat([fastseq.soft_dtw_cross(a, b) for a, b in pairs]).mean()


def of_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of two clips' embeddings alone, averaged over pairs."""
    return lambda step, x, y, labels: loss(x, y).mean()


# Every public differentiable function, under its name.
LOSSES: dict[str, Loss] = {
    "scl_loss": scl,
    "scl_loss over frames": scl_over_frames,
    "scl_loss over videos": scl_over_videos,
    "soft_dtw": of_pairs(fastseq.soft_dtw),
    "soft_dtw cosine": of_pairs(functools.partial(fastseq.soft_dtw, cost="cosine")),
    "soft_dtw softmax": of_pairs(functools.partial(fastseq.soft_dtw, cost="softmax")),
    "soft_dtw_from_cost": of_pairs(lambda x, y: fastseq.soft_dtw_from_cost(costs(x, y))),
    "soft_dtw_cross": of_pairs(crossed),
    "contrastive_idm": of_pairs(lambda x, y: fastseq.contrastive_idm(x + y)),
    "tcc_loss": of_pairs(fastseq.tcc_loss),
    "queue_nce": queue_nce,
    "queue_nce and enqueue": queue_nce_and_enqueue,
    "lav_loss": of_pairs(fastseq.lav_loss),
    "lrprop_loss": of_pairs(fastseq.lrprop_loss),
    "tcn_loss": of_pairs(tcn),
    "gta_loss": of_pairs(fastseq.gta_loss),
    "ae2_loss": of_pairs(fastseq.ae2_loss),
    "vava_loss": of_pairs(fastseq.vava_loss),
    "sinkhorn_alignment": of_pairs(fastseq.sinkhorn_alignment),
    "drop_dtw": of_pairs(lambda x, y: fastseq.drop_dtw(costs(x, y), x.square().mean(-1))),
    "otam": of_pairs(lambda x, y: fastseq.otam(costs(x, y))),
    "intra_nce": of_pairs(lambda x, y: fastseq.intra_nce(x[:, 0], y[:, 0], y[:, 1:])),
    "temporal_order_loss": order,
    "vclr_loss": vclr,
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Step:
    torch.manual_seed(0)
    return Step(name).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, PAIRS, FRAMES, CHANNELS, dtype=torch.float64, generator=generator)
    return x.to(dtype), y.to(dtype), torch.tensor([2, 0, 3, 1])


def part(name: str, rank: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The part of the batch that a rank has: pairs, or frames of all pairs."""
    x, y, labels = batch(dtype)
    if name == "scl_loss over frames":
        return [x.split([6, 3], 1)[rank], y.split([2, 7], 1)[rank], labels]
    return [z.chunk(RANKS)[rank] for z in (x, y, labels)]


def result(step: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Value and gradients; `full_tensor` joins the parts that ranks have."""
    found = {"loss": loss.detach()}
    for name, parameter in step.named_parameters():
        grad = parameter.grad
        found[name.removeprefix("module.")] = getattr(grad, "full_tensor", lambda g=grad: g)()
    return found


@functools.cache
def one_process(name: str, steps: int = 2) -> dict[str, Tensor]:
    step = make(name)
    for _ in range(steps):
        loss = step(*batch())
        step.zero_grad()
        loss.backward()
    return result(step, loss) | {"queue": step.queue.features}


def one_process_in_bf16(name: str) -> dict[str, Tensor]:
    """The average over parts of the batch of float32 weights, all cast to bfloat16."""
    parts = []
    for rank in range(RANKS):
        step = make(name, torch.float32)
        for parameter in step.parameters():
            parameter.data = parameter.data.bfloat16()
        if step.order is not None:  # FSDP2 casts the inputs of each module that it shards
            step.order.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
        loss = step(*part(name, rank, torch.bfloat16))
        loss.backward()
        parts.append(result(step, loss))
    return {key: sum(one[key].float() for one in parts) / RANKS for key in parts[0]}


def fsdp(name: str) -> dict[str, Tensor]:
    return trained(name, sharded(make(name)))


def fsdp_in_bf16(name: str) -> dict[str, Tensor]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    step = sharded(make(name, torch.float32), mp_policy=policy)
    return trained(name, step, dtype=torch.float32)


def fsdp_in_one_graph(name: str) -> dict[str, Tensor]:
    """FSDP2's hooks run before and after the graph."""
    step, ran = make(name), []
    fully_shard(step, mesh=mesh())
    step.forward = compiled(step.forward, ran, fullgraph=True)
    return trained(name, step) | {"ran": ran}


def fsdp_in_graphs(name: str) -> dict[str, Tensor]:
    """FSDP2's hooks break the graph before and after the block."""
    step, ran = make(name), []
    return trained(name, sharded(step), compiled(step, ran)) | {"ran": ran}


def ddp(name: str) -> dict[str, Tensor]:
    return trained(name, DistributedDataParallel(make(name)))


def ddp_in_graphs(name: str) -> dict[str, Tensor]:
    """Torch splits the graph where a bucket of gradients ends, here after each layer."""
    step, ran = DistributedDataParallel(make(name)), []
    step.bucket_bytes_cap = 100
    with mock.patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 100):
        return trained(name, step, compiled(step, ran)) | {"ran": ran}


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (RANKS,))


def sharded(step: Step, **options) -> Step:
    """FSDP2 with one group of parameters for the block, one for the classifier of orders, and one
    for all others."""
    for module in step.modules():
        if module is step.encoder.block or module is step.order:
            fully_shard(module, mesh=mesh(), **options)
    return fully_shard(step, mesh=mesh(), **options)


def trained(
    name: str,
    step: nn.Module,
    function: Callable | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Two steps on the part of this rank, without a change of the weights."""
    function = step if function is None else function
    for _ in range(2):
        step.zero_grad()
        loss = function(*part(name, dist.get_rank(), dtype))
        loss.backward()
    found = result(step, loss)
    dist.all_reduce(found["loss"])
    queue = getattr(step, "module", step).queue
    return found | {"loss": found["loss"] / RANKS, "queue": queue.features}


def compiled(function: Callable, ran: list[set[str]], **options) -> Callable:
    """torch.compile; ``ran`` receives the names of the project's operators in each graph."""
    torch._dynamo.reset()
    aot_eager = lookup_backend("aot_eager")

    def backend(graph, inputs):
        called = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        ran.append({target for target in called if target.startswith("fastseq")})
        return aot_eager(graph, inputs)

    return torch.compile(function, backend=backend, **options)


def on_ranks(rank: int, folder: Path, work: list[tuple[Callable, str]]) -> None:
    """Store what each function returns on this rank; an error as its traceback."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/ranks",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=3),
    )
    results = {}
    for function, name in work:
        try:
            results[function.__name__, name] = function(name)
        except Exception:
            results[function.__name__, name] = traceback.format_exc()
    torch.save(results, folder / f"rank{rank}.pt")
    os._exit(0)  # gloo's threads may hang at an ordinary exit


def run_script(rank: int, code: str, ranks: int, port: int, folder: Path) -> None:
    """Run ``code`` as torchrun does; its output is in the folder."""
    torch.set_num_threads(1)
    os.environ |= torchrun(rank, ranks, port)
    with open(folder / f"said{rank}", "w") as file, contextlib.redirect_stdout(file):
        exec(compile(code, "script", "exec"), {"__name__": "__main__"})
    os._exit(0)


def torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment of a process that meets the others at a store of the parent."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
