"""The videos of that run, their embeddings, and the rows of its evaluation."""

import json
import os
from pathlib import Path

from training.data.index import load_index
from training.evaluation.encoders import TRAINED
from training.evaluation.stored import run_embeddings


def records():
    return list(load_index("videos").videos)


def made(run, **options):
    found, _ = run_embeddings(run, records(), progress=False, **options)
    return [video.embeddings for video in found[TRAINED]]


def rows_of(file="run/evaluation.json"):
    return json.loads(Path(file).read_text())["rows"]


def new_file(name):
    os.utime(f"videos/{name}", ns=(1, 1))
