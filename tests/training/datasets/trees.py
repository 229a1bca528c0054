"""Small trees in the formats of the data sets' owners, and the command's time on each of them.

`python tests/training/datasets/trees.py` from the root of a checkout prints a table.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import pickle
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from fastseq.video import probe, read_frames, write_video


def jpeg(number: int, size: tuple[int, int] = (48, 32)) -> bytes:
    """A JPEG file with a grey that tells its number."""
    pixels = np.full((size[1], size[0], 3), 20 + 7 * number % 200, np.uint8)
    pixels[: 4 + number % 8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    return file.getvalue()


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / f"{number:06}.jpg").write_bytes(jpeg(number))


def video(path: Path, frames: int, fps: float = 25) -> None:
    """A video whose frames tell their numbers, by the greys of their two halves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.empty((frames, 32, 64, 3), np.uint8)
    for number in range(frames):
        pixels[number, :, :32] = 30 + 10 * (number % 20)
        pixels[number, :, 32:] = 30 + 10 * (number // 20)
    write_video(path, pixels, fps)


def numbers(path: Path) -> list[int]:
    """The numbers that the frames of such a video tell, also in a copy of another size."""
    frames = read_frames(path, range(probe(path).frames)).numpy().astype(float)
    half = frames.shape[2] // 2
    halves = [part.mean((1, 2, 3)) for part in (frames[:, :, : half - 2], frames[:, :, half + 2 :])]
    low, high = (np.rint((grey - 30) / 10).astype(int) for grey in halves)
    return (low + 20 * high).tolist()


# (id, action, train, frames, LAV's split, LAV's folder, number of labels)
PENN_ACTION = [
    ("0001", "baseball_pitch", 1, 20, "train", "baseball_pitch", 20),
    ("0002", "baseball_pitch", -1, 18, "val", "baseball_pitch", 18),
    ("0003", "bowl", 1, 12, "val", "bowling", 15),  # more labels than frames
    ("0004", "bowl", -1, 15, "train", "bowling", 12),  # more frames than labels
    ("0005", "squat", 1, 14, None, None, 0),  # no key events
    ("0006", "strum_guitar", 1, 10, None, None, 0),
]


def build_penn_action(root: Path, key_events: bool = True) -> None:
    for name, action, train, frames, split, folder, labels in PENN_ACTION:
        write_pictures(root / "frames" / name, frames)
        (root / "labels").mkdir(exist_ok=True)
        joints = np.zeros((frames, 13))
        annotation = {
            "action": action,
            "pose": "front",
            "x": joints,
            "y": joints,
            "visibility": joints,
            "train": np.float64(train),
            "bbox": np.zeros((frames, 4)),
            "dimensions": np.array([[32, 48, frames]]),
            "nframes": np.array([[frames]], np.uint8),
        }
        savemat(root / "labels" / f"{name}.mat", annotation)
        if key_events and split:
            path = root / "labels" / split / folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.arange(labels) * 3 // labels)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _bytes_feature(data: bytes) -> bytes:
    return _field(1, _field(1, data))


def _int_feature(value: int) -> bytes:
    return _field(3, _field(1, _varint(value)))


def _map(number: int, entries: dict[str, bytes]) -> bytes:
    pairs = [_field(1, key.encode()) + _field(2, value) for key, value in entries.items()]
    return _field(number, b"".join(_field(1, pair) for pair in pairs))


def sequence_example(
    name: str, pictures: list[bytes], labels: list[int] | None, phases: list[str] = ()
) -> bytes:
    """A serialized SequenceExample with the features that TCC's get_example writes."""
    context = {"name": _bytes_feature(name.encode()), "len": _int_feature(len(pictures))}
    context["label"] = _int_feature(0)
    if phases:
        context["framelabels_string"] = _bytes_feature(",".join(phases).encode())
    lists = {"video": b"".join(_field(1, _bytes_feature(one)) for one in pictures)}
    if labels is not None:
        lists["frame_labels"] = b"".join(_field(1, _int_feature(one)) for one in labels)
    return _map(1, context) + _map(2, lists)


def masked_crc(data: bytes) -> int:
    """CRC-32C bit by bit, masked as TFRecord files have it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc(length)))
            file.write(data + struct.pack("<I", masked_crc(data)))


POURING = {"train-0-of-2": ["a", "b"], "train-1-of-2": ["c"], "val-0-of-1": ["d"]}


def pouring_labels(name: str) -> list[int]:
    count = 10 + ord(name) % 5
    return [5 * number // count for number in range(count)]


def build_pouring(root: Path) -> None:
    for shard, names in POURING.items():
        records = []
        for name in names:
            labels = pouring_labels(name)
            pictures = [jpeg(number, (24, 24)) for number in range(len(labels))]
            records.append(sequence_example(f"{name}_real_view_0", pictures, labels))
        write_tfrecord(root / f"pouring_{shard}.tfrecord", records)


def build_pouring_pickles(root: Path) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        videos = []
        for number, name in enumerate(names):
            labels = pouring_labels(name)
            video(root / "videos" / f"{name}.mp4", len(labels))
            videos.append({"id": number, "name": name, "video_file": f"videos/{name}.mp4"})
            videos[-1] |= {"seq_len": len(labels), "frame_label": torch.tensor(labels)}
        (root / f"{split}.pkl").write_bytes(pickle.dumps(videos))


GYM99 = ["(VT) round-off on", "(FX) stag jump", "(FX) 1 turn"]
GYM288 = ["(VT) round-off on", "(VT) tsukahara", "(FX) stag jump", "(FX) cat leap", "(FX) 1 turn"]
FLOOR, VAULT, EMPTY = "E_000001_000004", "E_000005_000006", "E_000006_000007"


def build_finegym(root: Path) -> None:
    """One video of 200 frames at 25 per second, a second one that is not there."""
    video(root / "FineGym_Raw_database" / "A0xizZuzKI0.mp4", 200)
    segments = {
        "A_0000_0001": {"stages": 1, "timestamps": [[0.2, 1.0]]},
        "A_0001_0002": {"stages": 1, "timestamps": [[0.9, 1.6]]},  # overlaps by 0.1 s
        "A_0002_0003": {"stages": 1, "timestamps": [[2.0, 2.5]]},
    }
    vault = {"A_0000_0001": {"stages": 3, "timestamps": [[0.0, 0.3], [0.3, 0.5], [0.5, 0.9]]}}
    annotation = {
        "A0xizZuzKI0": {
            FLOOR: {"event": 2, "timestamps": [[1.02, 4.5]], "segments": segments},
            VAULT: {"event": 1, "timestamps": [[5.0, 6.0]], "segments": vault},
            EMPTY: {"event": 2, "timestamps": [[6.0, 7.0]], "segments": None},
            "E_000007_000007": {"event": 2, "timestamps": [[7.5, 7.5]], "segments": None},
        },
        "Missing0000": {
            "E_000000_000002": {
                "event": 2,
                "timestamps": [[0.0, 2.0]],
                "segments": {"A_0000_0001": {"stages": 1, "timestamps": [[0.1, 0.9]]}},
            }
        },
    }
    (root / "finegym_annotation_info_v1.0.json").write_text(json.dumps(annotation))
    for key, names in (("gym99", GYM99), ("gym288", GYM288)):
        lines = [f"Clabel: {k:3}; set: 21; Glabel: {k:3}; {name}" for k, name in enumerate(names)]
        (root / f"{key}_categories.txt").write_text("\n".join(lines) + "\n")
    floor = f"A0xizZuzKI0_{FLOOR}"
    elements = {
        "gym99_train_element_v1.0": [
            f"{floor}_A_0000_0001 1",
            f"{floor}_A_0001_0002 2",
            f"{floor}_A_0001_0002 2",  # listed twice
            "Missing0000_E_000000_000002_A_0000_0001 1",
        ],
        "gym99_val_element": [f"A0xizZuzKI0_{VAULT}_A_0000_0001 0"],
        "gym288_train_element_v1.0": [
            f"{floor}_A_0000_0001 2",
            f"{floor}_A_0001_0002 4",
            f"{floor}_A_0002_0003 3",
            f"{floor}_A_0009_0010 3",  # not in the annotation
        ],
        "gym288_val_element": [f"A0xizZuzKI0_{VAULT}_A_0000_0001 1"],
    }
    for name, lines in elements.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


TABLE = """\
path,split,action,view,start,end,phase
a/1.mp4,train,pour,ego,0,8,reach
a/1.mp4,,,,8,20,pour it
a/1.mp4,,,,22,30,put down
b/2.mp4,test,pour,exo,,5,reach
b/2.mp4,,,,5,,pour it
c.mp4,validation,wave,,,,
gone.mp4,train,pour,,,,
"""


def build_csv(root: Path) -> None:
    for name in ("a/1.mp4", "b/2.mp4", "c.mp4"):
        video(root / name, 30)
    (root / "table.csv").write_text(TABLE)


# A small network on short clips, for a short test of every source.
TINY = [
    *("model.backbone=small_cnn", "model.weights=null", "model.train_from=all"),
    *("augmentation.size=32", "data.num_frames=8", "data.batch_size=2", "data.workers=0"),
    *("data.cache=none", "train.steps=2", "train.epochs=null", "train.max_minutes=null"),
    "train.device=cpu",
]

# Name on the command line -> (tree, what SOURCE is below the root of the tree).
BUILDERS = {
    "penn_action": (build_penn_action, "."),
    "pouring": (build_pouring, "."),
    "finegym": (build_finegym, "."),
    "csv": (build_csv, "table.csv"),
}


def main() -> None:
    """Time the command, preparing its result, and two training steps on it, for every tree."""
    from training.labels import main as labels
    from training.prepare import main as prepare
    from training.train import main as train

    builders = dict(BUILDERS)
    more = importlib.util.find_spec("more_trees")
    if more is not None:
        builders |= importlib.import_module("more_trees").BUILDERS
    print("| command | labels, s | prepare, s | two steps, s |\n|---|---|---|---|")
    for name, (build, source) in builders.items():
        with tempfile.TemporaryDirectory() as folder:
            root, out = Path(folder, "source"), Path(folder, "out")
            root.mkdir()
            build(root)
            made, reading = _timed(labels, [name, str(root / source), "--out", str(out)])
            prepared, preparing = _timed(prepare, [str(out)])
            options = [f"data.folder={out}", f"train.run_dir={folder}/run", *TINY]
            trained, training = _timed(train, ["recipes/carl_small.yaml", *options])
            seconds = f"{reading:.2f} | {preparing:.2f} | {training:.2f}"
            print(f"| `labels {name} SOURCE --out OUT` | {seconds} |", flush=True)
            if made not in (0, 3) or prepared or trained:  # the trees lack a video on purpose
                raise SystemExit(f"{name}: exit statuses {made}, {prepared} and {trained}")


def _timed(command: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, float]:
    """(exit status, seconds) of a command whose output is hidden."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = command(arguments)
    return status, time.perf_counter() - start


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    main()
