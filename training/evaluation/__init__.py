"""Evaluation of embeddings: the papers' protocols, alignment, retrieval, tables and pictures."""
