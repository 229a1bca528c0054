"""Pre-norm Transformer encoder over frames, through scaled_dot_product_attention."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.support.time_split import TimeSplit, join_time


class TransformerLayer(nn.Module):
    """``x + drop(attention(norm(x)))``, then ``x + drop(feed_forward(norm(x)))``.

    Like CARL's released layer: dropout only on the two residual branches, ReLU, biases everywhere,
    Xavier-uniform weights, and no norm after the last layer.
    """

    def __init__(self, size: int, heads: int, ff_size: int, dropout: float) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"hidden_size {size} is not a multiple of heads {heads}")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.ff_norm = nn.LayerNorm(size)
        self.ff1 = nn.Linear(size, ff_size)
        self.ff2 = nn.Linear(ff_size, size)
        self.dropout = nn.Dropout(dropout)
        # One matrix for speed, but each third is initialised as a separate square matrix.
        for weight in (
            *self.qkv.weight.chunk(3),
            self.out.weight,
            self.ff1.weight,
            self.ff2.weight,
        ):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None,
        *,
        recompute: bool = False,
        split: TimeSplit | None = None,
    ) -> Tensor:
        """x (N, T, size) to the same shape; keys: bool (N, 1, 1, T), True = attended to, or None.

        With ``recompute`` backward recomputes both branches, except for their dropouts. With
        ``split`` x is this rank's part of T, and its frames attend to those of all ranks; keys is
        the mask of all. A recomputation gathers keys and values again, so that they are in memory
        for one layer at a time.
        """
        x = x + self.dropout(_branch(self._attend, recompute, x, keys, split))
        return x + self.dropout(_branch(self._feed_forward, recompute, x))

    def _attend(self, x: Tensor, keys: Tensor | None, split: TimeSplit | None) -> Tensor:
        n, frames, size = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, frames, 3, self.heads, size // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, size / heads]
        if split is not None:
            k, v = (join_time(qkv[:, :, part], split).transpose(1, 2) for part in (1, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out(mixed.transpose(1, 2).reshape(n, frames, size))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ff2(F.relu(self.ff1(self.ff_norm(x))))


def _branch(call: Callable[..., Tensor], recompute: bool, *inputs: object) -> Tensor:
    if not recompute:
        return call(*inputs)
    # Nothing in a branch is random, so the generator's state need not be read.
    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
