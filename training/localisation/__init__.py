"""Temporal action localisation on features of whole videos: BMN, its proposals, their metrics."""
