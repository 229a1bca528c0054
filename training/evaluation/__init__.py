"""Evaluation of embeddings: protocols of the papers, alignment, retrieval, tables, pictures."""
