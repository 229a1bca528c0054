"""Converts files of CARL's released code (minghchen/CARL_code): configurations, label pickles and
checkpoints. See `python -m training.carl_code --help`."""
