"""Frame counts of real files; the clips themselves are not part of the project.

Presented frames (edit lists honoured) as counted once with FFmpeg's own decoder. The clips: golf
swings from public GitHub repositories, the multi-camera demo of Pose2Sim, test files of TorchCodec,
decord and MMAction2.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from fastseq.video import VideoError, probe, read_frames

FRAMES = {
    "golf_swing/golfdb_test_video.mp4": 264,
    "golf_swing/hsway_CM_range.mp4": 176,
    "golf_swing/hsway_HS_bali.mp4": 233,
    "golf_swing/hsway_MJR_range.mp4": 87,
    "golf_swing/wayne_golf_swing.mp4": 328,
    "golf_swing/wayne_new_swing.mp4": 413,
    "golf_swing/wayne_swing1.mp4": 155,
    "golf_swing/wayne_swing2.mp4": 206,
    "golf_swing/wayne_swing3.mp4": 450,
    "golf_swing/wayne_swing4.mp4": 450,
    "golf_swing/wayne_swing5.mp4": 253,
    "golf_swing/wayne_swing6.mp4": 128,
    "misc/decord_corrupted.mp4": 50,
    "misc/decord_flipping_a_pancake.mkv": 310,
    "misc/decord_unordered.mov": 4,
    "misc/decord_video_0.mov": 3,
    "misc/decord_video_180.mov": 3,
    "misc/decord_video_270.mov": 3,
    "misc/decord_video_90.mov": 3,
    "misc/mmaction2_demo.mp4": 280,
    "misc/mmaction2_test.mp4": 300,
    "misc/mmaction2_test_mpeg4.avi": 164,
    "misc/mmpose_demo.mp4": 5,
    "misc/sports2d_demo.mp4": 230,
    "misc/torchcodec_av1_video.mkv": 125,
    "misc/torchcodec_h265_video.mp4": 10,
    "misc/torchcodec_nasa_13013.mp4": 390,  # of two streams the larger
    "misc/torchcodec_nasa_13013_rotated.mp4": 17,
    "multiview/pose2sim_Trial_1_cam01.mp4": 100,
    "multiview/pose2sim_Trial_1_cam02.mp4": 100,
    "multiview/pose2sim_Trial_1_cam03.mp4": 100,
    "multiview/pose2sim_Trial_1_cam04.mp4": 100,
}
SMALL = [
    "golf_swing/hsway_CM_range.mp4",
    "golf_swing/hsway_MJR_range.mp4",
    "golf_swing/wayne_swing6.mp4",
    "misc/decord_flipping_a_pancake.mkv",
    "misc/mmaction2_test_mpeg4.avi",
    "misc/torchcodec_av1_video.mkv",
    "misc/torchcodec_h265_video.mp4",
    "misc/torchcodec_nasa_13013.mp4",
]


def test_frame_counts(real_clips):
    counts = {name: probe(real_clips / name).frames for name in FRAMES}
    assert counts == FRAMES


@pytest.mark.parametrize("name", SMALL)
def test_random_frames_equal_the_full_decode(real_clips, name):
    path = real_clips / name
    whole = read_frames(path, short_side=48)
    assert len(whole) == FRAMES[name]
    info = probe(path, decode=True)
    assert info.frames == FRAMES[name]
    generator = np.random.default_rng(0)
    for _ in range(6):
        indices = generator.integers(0, len(whole), 4)
        assert torch.equal(read_frames(path, indices, short_side=48, info=info), whole[indices])


def test_a_damaged_clip_stops_where_the_damage_is(real_clips):
    path = real_clips / "misc/decord_corrupted.mp4"
    info = probe(path, decode=True)
    assert info.frames == 29
    assert info.note.startswith("frames 29 to 49 are damaged")
    assert len(read_frames(path, range(29), short_side=32)) == 29
    with pytest.raises(VideoError, match="frame 29 was requested"):
        read_frames(path, range(50), short_side=32)


def test_rotated_clips_come_upright(real_clips):
    """Each clip shows a keyboard; the sizes and turns were checked by eye once."""
    for turn in (0, 90, 180, 270):
        info = probe(real_clips / f"misc/decord_video_{turn}.mov")
        upright = (320, 568) if turn % 180 else (568, 320)
        assert (info.rotation, (info.width, info.height)) == (-turn % 360, upright)
        frames = read_frames(info.path, short_side=32, info=info)
        assert frames.shape[:3] == ((3, 56, 32) if turn % 180 else (3, 32, 56))
