"""Evaluation of frame embeddings: CARL's protocol, alignment, retrieval and pictures."""
