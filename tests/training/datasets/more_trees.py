"""Small trees in the layout in which the owners release their data sets.

Each function writes one to `root` and returns it. The videos are the same few frames again and
again, so that a tree takes milliseconds.
"""

import functools
import io
import json
import pickle
from argparse import ArgumentParser
from pathlib import Path

import av
import numpy as np

from training.datasets.dataset import DataSet, Reader

CODECS = {"avi": "mpeg4", "mp4": "libx264", "mkv": "libx264", "webm": "libvpx"}
FORMATS = {"mkv": "matroska"}


def read(reader: Reader, source: Path, *options: str) -> DataSet:
    """The data set, with the options as on the command line."""
    parser = ArgumentParser()
    reader.add_arguments(parser)
    return reader.read(source, parser.parse_args(options))


@functools.cache
def video(ending: str, frames: int = 12) -> bytes:
    """A video of 32 x 24 pixels, 25 frames a second, with a square that moves."""
    file = io.BytesIO()
    with av.open(file, "w", format=FORMATS.get(ending, ending)) as container:
        stream = container.add_stream(CODECS[ending], rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(frames):
            picture = np.full((24, 32, 3), 60, np.uint8)
            picture[8:16, number : number + 8] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def place(path: Path, frames: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video(path.suffix[1:].lower(), frames))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build_ucf101(root: Path) -> Path:
    """Two classes, two training and two test videos; the last class is spelt in two ways there."""
    videos = [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "HandstandPushups/v_HandStandPushups_g09_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    ]
    for name in videos:
        place(root / "UCF-101" / name)
    lists = root / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n")
    write(lists / "trainlist01.txt", f"{videos[0]} 1\r\n{videos[1]} 37\r\n")
    write(lists / "testlist01.txt", f"{videos[2]}\r\n{videos[3]}\r\n")
    write(lists / "trainlist02.txt", f"{videos[2]} 1\r\n")
    write(lists / "testlist02.txt", f"{videos[0]}\r\n")
    return root


def build_hmdb51(root: Path) -> Path:
    """Two classes; names have the signs of the real ones. Mark 0 is in neither set."""
    lists = root / "testTrainMulti_7030_splits"
    for action in ("brush_hair", "wave"):
        names = [f"April_09_{action}_u_nm_np1_ba_goo_{k}.avi" for k in range(2)]
        names.append(f"Rick&Mary's_#1_[full]_{action}_f_cm_np1_ba_med_0.avi")
        for name in names:
            place(root / "hmdb51_org" / action / name)
        marks = "".join(f"{name} {mark} \n" for name, mark in zip(names, (1, 2, 0), strict=True))
        write(lists / f"{action}_test_split1.txt", marks)
    return root


def build_kinetics(root: Path) -> Path:
    """CVDF's folders: one file for each row, but none for the last row of train.csv."""
    header = "label,youtube_id,time_start,time_end,split\n"
    rows = {
        "train": [
            '"air drumming",-A_bcdefghi,5,15,train',
            "abseiling,AbCdEfGhIjK,1,11,train",
            "abseiling,_4YTwq0-73Y,27.0,37.0,train",
        ],
        "val": ["abseiling,0wR5jVB-WPk,417,427,validate"],
        "test": ["abseiling,zzzzzzzzzzz,0,10,test"],
    }
    for split, lines in rows.items():
        write(root / "annotations" / f"{split}.csv", header + "\n".join(lines) + "\n")
    place(root / "train" / "-A_bcdefghi_000005_000015.mp4")
    place(root / "train" / "AbCdEfGhIjK_000001_000011.mp4")
    place(root / "val" / "0wR5jVB-WPk_000417_000427.mp4")
    place(root / "test" / "zzzzzzzzzzz_000000_000010.mp4")
    return root


def build_ssv2(root: Path) -> Path:
    """Five videos; one test video with and one without an answer."""
    for number in range(1, 6):
        place(root / "20bn-something-something-v2" / f"{number}.webm")
    things = {"placeholders": ["a cup"]}
    holding = {"template": "Holding [something]", "label": "holding a cup", **things}
    moving = {"template": "Moving [part] of [something]", "label": "moving a cup", **things}
    prefix = root / "annotations" / "something-something-v2"
    train = [{"id": "1", **holding}, {"id": "2", **moving}]
    for name, content in {
        "train": train,
        "validation": [{"id": "3", **holding}],
        "test": [{"id": "4"}, {"id": "5"}],
        "labels": {"Holding something": "0", "Moving part of something": "1"},
    }.items():
        write(Path(f"{prefix}-{name}.json"), json.dumps(content))
    write(root / "annotations" / "test-answers.csv", "5;Moving part of something\n")
    return root


def build_activitynet(root: Path) -> Path:
    """One video of each subset; the segments of the training video overlap."""
    database = {
        "--1DO2V4K74": ("training", [(0.1, 0.3, "Rock climbing"), (0.05, 0.2, "Zumba")]),
        "v_bcdefghij": ("validation", [(0.0, 0.25, "Zumba"), (0.3, 0.59, "Rock climbing")]),
        "0wR5jVB-WPk": ("testing", []),
    }
    content = {
        "version": "VERSION 1.3",
        "taxonomy": [],
        "database": {
            name: {
                "duration": 0.6,
                "subset": subset,
                "resolution": "32x24",
                "url": f"https://www.youtube.com/watch?v={name}",
                "annotations": [{"segment": [a, b], "label": label} for a, b, label in segments],
            }
            for name, (subset, segments) in database.items()
        },
    }
    write(root / "json" / "activity_net.v1-3.min.json", json.dumps(content))
    place(root / "v1-3" / "train_val" / "v_--1DO2V4K74.mp4")
    place(root / "v1-3" / "train_val" / "v_v_bcdefghij.mkv")
    place(root / "v1-3" / "test" / "v_0wR5jVB-WPk.webm")
    return root


def build_ae2(root: Path) -> Path:
    """break_eggs with lists in the folders of the views, pour_milk with folders of the splits."""
    phases = np.repeat([0, 1, 2], 4)
    labels = {}
    for view in ("ego", "exo"):
        for split in ("train", "val", "test"):
            place(root / "break_eggs" / view / f"{view}_{split}.mp4")
            write(root / "break_eggs" / view / f"{split}.csv", f"{view}_{split}.mp4\n")
            labels[f"{view}_{split}"] = phases
    (root / "break_eggs" / "label.pickle").write_bytes(pickle.dumps(labels))
    labels = {}
    for view in ("ego", "exo"):
        for split in ("train", "val", "test"):
            place(root / "pour_milk" / split / view / f"subject1_{view}_{split}.mp4")
            labels[f"subject1_{view}_{split}"] = phases % 2
    (root / "pour_milk" / "label.pickle").write_bytes(pickle.dumps(labels))
    return root


def build_egoprocel(root: Path) -> Path:
    """Four of the six data sets, with the names of files that their owners chose."""
    steps = "0,0.2,1 break egg\n0.2,0.4,3 add water\n"
    place_of = {
        "CMU-MMAC/Brownie/S07_Brownie_Video/S07_Brownie_7150991-1431": "mp4",
        "CMU-MMAC/Brownie/S07_Brownie_Video/S07_Brownie_6510211-1103": "avi",
        "EGTEA_Gaze+/Pizza/OP01-R03-Pizza": "mp4",
        "MECCANO/0003": "mp4",
    }
    for name, ending in place_of.items():
        write(root / "annotations" / f"{name}.csv", steps)
        place(root / "videos" / f"{name}.{ending}")
    write(root / "annotations/EPIC-Tents/01.tent.090617.gopro.egoprocel.ann.csv", "0,0.4,1. pole\n")
    place(root / "videos/EPIC-Tents/01.tent.090617.gopro.MP4")
    return root


def build_ikea_asm(root: Path) -> Path:
    """Two scans of Kallax drawers, a video and pictures, and one side table."""
    segments = [("NA", 0, 2), ("pick up side panel", 3, 7), ("NA", 8, 9), ("other", 10, 11)]
    scans = {
        "Kallax_Shelf_Drawer/0001_black_table_02_01_2019_08_16_14_00": "training",
        "Kallax_Shelf_Drawer/0002_white_floor_05_04_2019_08_19_17_47": "testing",
        "Lack_Side_Table/0003_oak_floor_01_01_2019_08_20_10_05": "training",
    }
    database = {
        scan: {
            "subset": subset,
            "annotation": [{"label": label, "segment": [a, b]} for label, a, b in segments],
        }
        for scan, subset in scans.items()
    }
    content = {"version": "VERSION 1.3", "database": database}
    write(root / "annotations/action_annotations/gt_segments.json", json.dumps(content))
    kallax, pictures, table = scans
    write(root / "indexing_files/train_cross_env.txt", f"{kallax}\n{table}\n")
    write(root / "indexing_files/test_cross_env.txt", f"{pictures}\n")
    for device in ("dev1", "dev3"):
        place(root / kallax / device / "images" / "scan_video.avi")
    place(root / table / "dev3" / "images" / "scan_video.avi")
    folder = root / pictures / "dev3" / "images"
    folder.mkdir(parents=True)
    frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 90, np.uint8), format="rgb24")
    data = io.BytesIO()
    frame.to_image().save(data, "JPEG")
    for number in range(12):
        (folder / f"{number:06}.jpg").write_bytes(data.getvalue())
    return root


BUILDERS = {
    "ikea_asm": (build_ikea_asm, "."),
    "ae2": (build_ae2, "."),
    "ucf101": (build_ucf101, "."),
    "hmdb51": (build_hmdb51, "."),
    "kinetics": (build_kinetics, "."),
    "ssv2": (build_ssv2, "."),
    "activitynet": (build_activitynet, "."),
    "egoprocel": (build_egoprocel, "."),
}
