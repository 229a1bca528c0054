"""What several ops share: validation, lengths and masks, choice of backend."""
