"""Pouring: tfrecords without TensorFlow, and CARL's pickles."""

import json
import struct

import pytest
import trees

from training.datasets.tfrecord import masked_crc, records
from training.labels import main


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on a tree: (exit status, labels.json, what was printed)."""
    source, out = tmp_path / "source", tmp_path / "out"

    def command(*options: str):
        status = main(["pouring", str(source), "--out", str(out), "--overwrite", *options])
        path = out / "labels.json"
        return status, json.loads(path.read_text()) if path.exists() else None, capsys.readouterr()

    return command


def test_checksums():
    assert masked_crc(b"123456789") == trees.masked_crc(b"123456789")
    # The published check value of CRC-32C, masked.
    value = 0xE3069283
    assert masked_crc(b"123456789") == ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tfrecords_become_folders_of_pictures(run, tmp_path):
    trees.build_pouring(tmp_path / "source")
    status, labels, printed = run()
    assert status == 0
    assert labels["classes"] == {"pouring": [f"phase {k}" for k in range(5)]}
    splits = {name: entry["split"] for name, entry in labels["videos"].items()}
    assert splits == {
        "a_real_view_0": "train",
        "b_real_view_0": "train",
        "c_real_view_0": "train",
        "d_real_view_0": "test",
    }
    for name, entry in labels["videos"].items():
        assert entry["phases"] == trees.pouring_labels(name[0])
        assert entry["fps"] == 25
        files = sorted((tmp_path / "out" / name).iterdir())
        assert [file.read_bytes() for file in files] == [
            trees.jpeg(number, (24, 24)) for number in range(len(entry["phases"]))
        ]
    assert "splits: test 1, train 3" in printed.out


def test_names_of_phases_and_records_without_labels(run, tmp_path):
    names = ["reach", "lift", "pour", "put", "rest"]
    pictures = [trees.jpeg(0)] * 3
    trees.write_tfrecord(
        tmp_path / "source/pouring_train-0-of-1.tfrecord",
        [
            trees.sequence_example("a", pictures, [0, -1, 4], names),
            trees.sequence_example("b", pictures, None),
        ],
    )
    status, labels, printed = run("--fps", "30")
    assert status == 0
    assert labels["classes"] == {"pouring": names}
    assert labels["videos"]["a"]["phases"] == [0, -1, 4]
    assert labels["videos"]["b"] == {"action": "pouring", "split": "train", "fps": 30.0}
    assert "remark: no frame_labels (1): b" in printed.out


def test_damaged_files_are_named_with_the_record(run, tmp_path):
    trees.build_pouring(tmp_path / "source")
    path = tmp_path / "source/pouring_train-0-of-2.tfrecord"
    data = path.read_bytes()
    _, second = records(path)
    start = second.offset - 12
    flipped = bytearray(data)
    flipped[start + 500] ^= 1
    length = bytearray(data)
    length[start] ^= 1
    text = trees.masked_crc(struct.pack("<Q", 3))
    framed = struct.pack("<QI", 3, text) + b"abc" + struct.pack("<I", trees.masked_crc(b"abc"))
    for content, message in (
        (data[: start + 600], f"record 1 (byte {start}) is cut off"),
        (data[:-2], f"record 1 (byte {start}) is cut off"),
        (data[: start + 5], f"record 1 (byte {start}) is cut off"),
        (bytes(flipped), f"record 1 (byte {start}) is damaged (its checksum differs)"),
        (bytes(length), f"record 1 (byte {start}) is damaged (the checksum of its length differs)"),
        (b"no tfrecord file", "record 0 (byte 0) has no header of a TFRecord file"),
        (framed, "record 0 (byte 0) is no SequenceExample"),
    ):
        path.write_bytes(content)
        status, _, printed = run()
        assert status == 2
        assert f"{path}: {message}" in printed.err
    assert not (tmp_path / "out").exists()


def test_records_that_do_not_fit(run, tmp_path):
    path = tmp_path / "source/pouring_train-0-of-1.tfrecord"
    pictures = [trees.jpeg(0)] * 3
    good = trees.sequence_example("a", pictures, [0, 1, 2])
    for written, message in (
        ([trees.sequence_example("a", pictures, [0, 1])], "(a) has 3 frames, 2 frame_labels"),
        ([trees.sequence_example("a", [], [])], "(a) has no frames"),
        ([trees.sequence_example("a", pictures, [0, 1, -3])], "(a) has the frame label -3"),
        ([good, good], "record 1 is 'a', as record 0 of"),
        ([trees._map(1, {"image": trees._bytes_feature(b"x")})], "record 0 has image; expected"),
    ):
        trees.write_tfrecord(path, written)
        status, _, printed = run()
        assert status == 2
        assert message in printed.err
    trees.write_tfrecord(path, [good])
    path.rename(path.with_name("pouring.tfrecord"))
    status, _, printed = run()
    assert status == 2
    assert "expected one split in the file's name" in printed.err


def test_a_missing_shard_is_named(run, tmp_path):
    trees.build_pouring(tmp_path / "source")
    (tmp_path / "source/pouring_train-1-of-2.tfrecord").unlink()
    status, labels, printed = run()
    assert (status, len(labels["videos"])) == (3, 3)
    assert "missing: no such file in" in printed.out
    assert "pouring_train-1-of-2.tfrecord" in printed.out


def test_carls_pickles(run, tmp_path):
    trees.build_pouring_pickles(tmp_path / "source")
    status, labels, _ = run()
    assert status == 0
    assert labels["videos"]["videos/c.mp4"] == {
        "action": "pouring",
        "split": "test",
        "phases": trees.pouring_labels("c"),
    }
    assert (tmp_path / "out/videos/c.mp4").is_symlink()
    (tmp_path / "source/videos/a.mp4").unlink()
    (tmp_path / "source/val.pkl").unlink()
    status, labels, printed = run()
    assert (status, [*labels["videos"]]) == (3, ["videos/b.mp4"])
    assert f"missing: no such file in {tmp_path / 'source'} (2): val.pkl, videos/a.mp4" in (
        printed.out
    )


def test_another_folder(run, tmp_path):
    (tmp_path / "source").mkdir()
    status, _, printed = run()
    assert status == 2
    assert "no *.tfrecord, train.pkl or val.pkl; it is empty. Expected:" in printed.err
