"""Reads what CARL's released code (minghchen/CARL_code) works with: configurations, label pickles,
checkpoints. See `python -m training.carl_code --help`."""
