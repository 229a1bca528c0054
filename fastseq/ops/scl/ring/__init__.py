"""scl_loss of videos whose frames, or which themselves, are spread over the ranks of a group."""
