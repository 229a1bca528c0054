"""InfoNCE of queries and any number of positives against a queue of negatives."""

from fastseq.ops.queue_nce.op import queue_nce

__all__ = ["queue_nce"]
