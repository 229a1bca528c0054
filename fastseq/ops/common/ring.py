"""Blocks of tensors that travel from rank to rank, each rank computing with one while it sends on.

Engine: torch.distributed's send and receive (NCCL on GPUs, gloo on a CPU).
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Shapes = Sequence[Sequence[int]]


class Ring:
    """The ranks of a process group, in their order.

    Attributes:
        rank, size: place of this process in the group, and number of its processes.
    """

    def __init__(self, op: str, group_name: str, device: torch.device) -> None:
        self.op, self.device = op, device
        self.group = dist.distributed_c10d._resolve_process_group(group_name)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        engines = dist.get_backend_config(self.group)
        check_engine(op, engines, device.type)
        self.has_cpu = "cpu:" in engines

    def integers(self, mine: Sequence[int]) -> list[list[int]]:
        """Every rank's integers. A group that has CPU communication (gloo) uses it, so that the
        host does not wait for the GPU."""
        device = "cpu" if self.has_cpu else self.device
        row = torch.tensor(mine, dtype=torch.int64, device=device)
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with self._naming_the_op():
            dist.all_gather(rows, row, group=self.group)
        return torch.stack(rows).tolist()

    def sum_(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        with self._naming_the_op():
            dist.all_reduce(x, group=self.group)
        return x

    def summed(self, x: Tensor) -> Tensor:
        """Sum over the ranks, as often differentiable as needed: the sum of the ranks' results."""
        return _Sum.apply(x, self)

    def max_(self, x: Tensor) -> Tensor:
        """Largest value of the ranks, in place."""
        with self._naming_the_op():
            dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def blocks(
        self, mine: Sequence[Tensor], shapes: Sequence[Shapes]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """(rank, its tensors) for every rank, this one first, then the one before it.

        A block is received while the caller computes with the one before. Two are in memory, if
        the caller has no reference to a block when it continues with the next.

        Args:
            mine: contiguous tensors, with the same dtypes on all ranks.
            shapes: for every rank the shapes of its tensors.
        """
        here = [x.contiguous() for x in mine]
        after, before = ((self.rank + step) % self.size for step in (1, -1))
        peers = [dist.get_global_rank(self.group, k) for k in (after, before)]
        for hop in range(self.size):
            owner = (self.rank - hop) % self.size
            coming: list[Tensor] = []
            works: list[dist.Work] = []
            if hop + 1 < self.size:
                wanted = shapes[(owner - 1) % self.size]
                coming = [x.new_empty(shape) for x, shape in zip(here, wanted, strict=True)]
                works = self._exchange(here, coming, *peers)
            yield owner, here
            with self._naming_the_op():
                for work in works:
                    work.wait()
            here = coming

    def _exchange(
        self, here: list[Tensor], coming: list[Tensor], after: int, before: int
    ) -> "list[dist.Work]":
        sends = [(dist.isend, x, after) for x in here if x.numel()]
        receives = [(dist.irecv, x, before) for x in coming if x.numel()]
        calls = [dist.P2POp(call, x, peer, self.group) for call, x, peer in sends + receives]
        # With NCCL this function hangs unless the current device is that of the tensors.
        current = self.device.index if self.device.type == "cuda" else -1
        with self._naming_the_op(), torch.cuda.device(current):
            return dist.batch_isend_irecv(calls) if calls else []

    @contextlib.contextmanager
    def _naming_the_op(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # DistBackendError is one
            raise RuntimeError(
                f"{self.op}: rank {self.rank} of {self.size} lost contact with the other ranks of "
                f"its group, or they called {self.op} with other arguments: {error}"
            ) from error


def check_engine(op: str, engines: str, device_type: str) -> None:
    """ValueError unless a group with ``engines`` ("cpu:gloo,cuda:nccl") can send such tensors."""
    engine = dict(pair.split(":", 1) for pair in engines.split(",")).get(device_type)
    if engine is None or (engine == "gloo" and device_type != "cpu"):
        raise ValueError(
            f"{op}: group has {engines}, which cannot send {device_type} tensors; to fix: make it "
            'with backend "cpu:gloo,cuda:nccl" (init_process_group or new_group), or pass tensors '
            "on another device"
        )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, ring: Ring) -> Tensor:
        ctx.ring = ring
        return ring.sum_(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.ring), None
