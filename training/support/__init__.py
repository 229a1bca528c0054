"""What every room may use: commands, whole files, ranks and signals."""
