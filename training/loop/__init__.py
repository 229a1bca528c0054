"""The training loop: trainer, optimizer step, losses, and the dry run."""
