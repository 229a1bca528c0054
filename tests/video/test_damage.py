"""Damage in the middle of a file: what is unsound is told, what is sound is read."""

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from counter_video import encode, encoded_once, read_counter, remux  # noqa: E402

from fastseq.video import VideoError, probe, read_frames, transcode  # noqa: E402
from fastseq.video._av import single_thread  # noqa: E402
from fastseq.video.gaps import gaps_of, sound_frames  # noqa: E402

GROUP = 12  # frames from key to key: more than are decoded rather than sought
COUNT = 3 * GROUP


@encoded_once
def noisy_video(path, bf, codec="libx264"):
    """Pixels that a decoder cannot guess."""
    generator = np.random.default_rng(0)
    base = generator.integers(0, 255, (48, 64, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        params = f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes={bf}"
        stream.options = {
            "x264-params": f"{params}:threads=1:mbtree=0",
            "x265-params": f"{params}:pools=none:log-level=none",
            "g": str(GROUP),
            "bf": str(bf),
            "sc_threshold": "1000000000",  # no keys but those
        }
        for t in range(COUNT):
            pixels = (np.roll(base, 3 * t, 1) // 2 + generator.integers(0, 40, base.shape)) % 256
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage(path, number, how, seed=0):
    """Spoil packet `number`, in the order of the file."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data, size = bytearray(path.read_bytes()), len(packets[number])
    pos = data.index(packets[number])
    if how == "length":  # of the NAL unit: the packet does not decode at all
        data[pos : pos + 4] = b"\x7f\xff\xff\xff"
    else:  # its content: the decoder may make up what is missing
        n = size // 3
        noise = np.random.default_rng(seed).integers(0, 255, n, dtype=np.uint8).tobytes()
        data[pos + n : pos + 2 * n] = noise
    bad = path.with_stem(f"bad_{path.stem}_{number}_{how}_{seed}")
    bad.write_bytes(data)
    return bad


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bf", [0, 2])
@pytest.mark.parametrize("number", [0, 13, 16, 17, 18])
def test_frames_beside_a_packet_that_does_not_decode(tmp_path, suffix, bf, number):
    whole = read_frames(noisy_video(tmp_path / f"a.{suffix}", bf))
    path = damage(tmp_path / f"a.{suffix}", number, "length")
    info = probe(path, decode=True)
    first = number // GROUP * GROUP
    assert info.frames == COUNT
    assert len(info.gaps) == 1
    (start, stop), sound = info.gaps[0], sound_frames(COUNT, info.gaps)
    assert first <= start <= number + 2
    assert stop == first + GROUP
    assert f"frames {start} to {stop - 1} are damaged" in info.note
    for given in (info, None):
        assert torch.equal(read_frames(path, sound, info=given), whole[sound])
        for index in (start, stop - 1):
            with pytest.raises(VideoError, match=f"frame {index} was requested"):
                read_frames(path, [index], info=given)
    for index in sound[:: 1 if number == 16 else 7]:
        assert torch.equal(read_frames(path, [index])[0], whole[index])
    with pytest.raises(VideoError, match="damaged"):
        read_frames(path)
    with pytest.raises(VideoError):
        transcode(path, tmp_path / "copy.mp4")
    assert not (tmp_path / "copy.mp4").exists()


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mpeg2video"])
@pytest.mark.parametrize("bf", [0, 2])
def test_no_frame_that_the_decoder_made_up_is_given(tmp_path, codec, bf):
    """Whatever FFmpeg notices: a frame comes out as it was, or not at all."""
    source = noisy_video(tmp_path / "a.mkv", bf, codec)
    whole = read_frames(source)
    noticed = 0
    for seed in range(6):
        path = damage(source, 16, "noise", seed)
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            try:
                seen = any(frame.is_corrupt for frame in container.decode(video=0))
            except av.error.FFmpegError:
                seen = True
        if not seen:  # nothing in the stream shows it
            continue
        noticed += 1
        info = probe(path, decode=True)
        assert info.note
        sound = sound_frames(info.frames, info.gaps)
        assert {0, GROUP - 1, 2 * GROUP + 1, COUNT - 1} <= set(sound.tolist())
        assert torch.equal(read_frames(path, sound, info=info), whole[sound])
        for index in range(GROUP - 5, 2 * GROUP + 5):
            try:
                frame = read_frames(path, [index])[0]
            except VideoError:
                assert index not in sound
            else:
                assert torch.equal(frame, whole[index])
        with pytest.raises(VideoError):
            transcode(path, tmp_path / "copy.mp4")
    assert noticed or codec == "libx265"  # HEVC decodes any bits


@pytest.mark.parametrize("suffix", ["avi", "ts"])
def test_without_a_timeline_flagged_frames_are_a_gap(tmp_path, suffix):
    source = noisy_video(tmp_path / f"a.{suffix}", 0)
    whole = read_frames(source)
    data, checked = source.read_bytes(), 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        place = len(data) * 45 // 100 + int(generator.integers(3000))
        spoilt = bytearray(data)
        spoilt[place : place + 60] = generator.bytes(60)
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(spoilt)
        info = probe(path)
        if not info.gaps or info.frames != COUNT:
            continue
        checked += 1
        assert "damaged" in info.note
        sound = sound_frames(COUNT, info.gaps)
        assert torch.equal(read_frames(path, sound, info=info), whole[sound])
        with pytest.raises(VideoError, match="damaged"):
            read_frames(path, [info.gaps[0][0]], info=info)
        with pytest.raises(VideoError, match=r"damaged|breaks off"):
            read_frames(path)
    assert checked


@pytest.mark.parametrize("bf", [0, 2])
def test_damage_in_frames_that_an_edit_list_hides(tmp_path, bf):
    """What is shown first refers to them."""
    source = remux(noisy_video(tmp_path / "a.mp4", bf), tmp_path / "edit.mp4", shift=7)
    whole, noticed = read_frames(source), 0
    for number in (1, 5, 6):
        for seed in range(4):
            path = damage(source, number, "noise", seed)
            info = probe(path, decode=True)
            noticed += bool(info.gaps)
            wrong = (read_frames_anyhow(path) != whole).flatten(1).any(1)
            if not info.gaps:
                continue
            assert info.gaps[0][0] == 0
            assert not wrong[sound_frames(info.frames, info.gaps)].any()
            with pytest.raises(VideoError, match="damaged"):
                read_frames(path, [0])
    assert noticed > 3


def read_frames_anyhow(path):
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        pixels = [
            frame.reformat(format="rgb24", **single_thread()).to_ndarray()
            for frame in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack(pixels))


def test_counters_keep_their_numbers_behind_a_gap(tmp_path):
    keys = f"keyint={GROUP}:min-keyint={GROUP}:bframes=2:scenecut=0:threads=1"
    options = {"crf": "18", "x264-params": keys}
    path = damage(encode(tmp_path / "a.mp4", COUNT, options=options), 16, "length")
    info = probe(path, decode=True)
    for index in (0, GROUP - 1, 2 * GROUP, COUNT - 1):
        assert read_counter(read_frames(path, [index], info=info)[0]) == index


def test_a_file_without_a_sound_frame(tmp_path):
    path = noisy_video(tmp_path / "a.mp4", 0)
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(VideoError, match="no frame can be decoded"):
        probe(path)


def test_gaps_and_sound_frames_are_each_others_rest():
    gaps = gaps_of([2, 3, 4, 7])
    assert gaps == ((2, 5), (7, 8))
    assert sound_frames(9, gaps).tolist() == [0, 1, 5, 6, 8]
    assert gaps_of([]) == ()
    assert sound_frames(3).tolist() == [0, 1, 2]
