"""The loop that trains: step, losses, and the dry run."""
