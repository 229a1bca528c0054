"""What every room may use: ranks and signals."""
