import colorsys
import math

import numpy as np
import pytest
import torch

from fastseq.video import Augmentation, augment_clip, eval_transform
from fastseq.video.augment import ClipDraw, apply_draw, central_crop, draw_clip

OFF = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def picture(T=4, height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (T, height, width, 3), dtype=torch.uint8, generator=generator)


def still(height, width, **changes):
    draw = {"top": 0, "left": 0, "height": height, "width": width}
    return ClipDraw(**{**draw, "flip": False, "colour": (), "blur_sigma": 0.0, **changes})


def test_one_draw_per_clip():
    frames = picture(T=1).expand(6, -1, -1, -1)
    generator = np.random.default_rng(0)
    outputs = [augment_clip(frames, Augmentation(size=24), generator) for _ in range(60)]
    for clip in outputs:
        assert clip.shape == (6, 3, 24, 24)
        assert clip.dtype == torch.uint8
        assert torch.equal(clip, clip[:1].expand_as(clip))
    assert len({clip.numpy().tobytes() for clip in outputs}) > 50
    one = augment_clip(frames, Augmentation(size=24), np.random.default_rng(5))
    two = augment_clip(frames, Augmentation(size=24), np.random.default_rng(5))
    assert torch.equal(one, two)


def test_crop_and_flip_are_exact():
    frames = picture()
    cropped = apply_draw(frames, still(16, 16, top=3, left=7), 16)
    assert torch.equal(cropped, frames[:, 3:19, 7:23].permute(0, 3, 1, 2))
    flipped = apply_draw(frames, still(16, 16, top=3, left=7, flip=True), 16)
    assert torch.equal(flipped, cropped.flip(3))


def test_resize_by_half_is_the_antialiased_triangle():
    frames = picture(T=2, height=32, width=32)
    out = apply_draw(frames, still(32, 32), 16).float()
    # Factor 2: weights 1, 3, 3, 1 over 8 at the four pixels around each output pixel.
    kernel = torch.zeros(16, 32)
    for row in range(16):
        for offset, weight in zip(range(-1, 3), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * row + offset < 32:
                kernel[row, 2 * row + offset] = weight
    kernel /= kernel.sum(1, keepdim=True)
    expected = kernel @ frames.permute(0, 3, 1, 2).float() @ kernel.T
    assert (out - expected).abs().max() <= 1.5  # bytes in between


@pytest.mark.parametrize("draw", [{}, {"colour": (("hue", 0.1),), "blur_sigma": 1.0}])
def test_a_clip_without_frames(draw):
    assert apply_draw(picture(T=0), still(16, 16, **draw), 8).shape == (0, 3, 8, 8)


def naive_colour(frames, colour):
    """The expected result: operation by operation on float pixels, clipped at the end."""
    x = frames.double().numpy()
    luma = np.array([0.299, 0.587, 0.114])
    for op, amount in colour:
        grey = (x * luma).sum(-1, keepdims=True)
        if op == "brightness":
            x = x * amount
        elif op == "contrast":
            x = x * amount + (1 - amount) * grey.mean()
        elif op == "saturation":
            x = x * amount + (1 - amount) * grey
        else:
            flat = x.reshape(-1, 3)
            for pixel in flat:
                y, i, q = colorsys_rgb_to_yiq(pixel)
                chroma = complex(i, q) * np.exp(2j * np.pi * amount)
                pixel[:] = colorsys_yiq_to_rgb(y, chroma.real, chroma.imag)
            x = flat.reshape(x.shape)
    return np.clip(x, 0, 255)


def colorsys_rgb_to_yiq(pixel):
    r, g, b = pixel
    y = 0.299 * r + 0.587 * g + 0.114 * b
    i = 0.595716 * r - 0.274453 * g - 0.321263 * b
    return y, i, 0.211456 * r - 0.522591 * g + 0.311135 * b


def colorsys_yiq_to_rgb(y, i, q):
    return np.linalg.solve(
        [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]],
        [y, i, q],
    )


@pytest.mark.parametrize("seed", range(8))
def test_folded_colour_equals_pixel_by_pixel(seed):
    frames = picture(T=2, height=12, width=12, seed=seed)
    spec = Augmentation(size=12, jitter=1.0, grayscale=0.3)
    colour = draw_clip(12, 12, spec, np.random.default_rng(seed)).colour
    assert {op for op, _ in colour} == {"brightness", "contrast", "saturation", "hue"}
    out = apply_draw(frames, still(12, 12, colour=colour), 12).permute(0, 2, 3, 1).double().numpy()
    assert np.abs(out - naive_colour(frames, colour)).max() <= 0.51


def test_single_operations():
    frames = picture(T=2, height=8, width=8)
    same = apply_draw(frames, still(8, 8, colour=(("hue", 0.0), ("contrast", 1.0))), 8)
    assert torch.equal(same, frames.permute(0, 3, 1, 2))
    grey = apply_draw(frames, still(8, 8, colour=(("saturation", 0.0),)), 8)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    dark = apply_draw(frames, still(8, 8, colour=(("brightness", 0.5),)), 8).float()
    assert (dark - frames.permute(0, 3, 1, 2) / 2).abs().max() <= 0.51
    red = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 120
    turned = apply_draw(red, still(8, 8, colour=(("hue", 1 / 3),)), 8)[0, :, 0, 0].double() / 255
    hue = colorsys.rgb_to_hsv(*turned.tolist())[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.1  # a third of the circle away


def mirrored(index, size):
    """The index of a position in a picture that is continued by its mirror image: 2 1 0 1 2 1 0."""
    index = abs(index) % (2 * size - 2)
    return min(index, 2 * size - 2 - index)


def test_blur():
    """Compared with the mean over all positions within 3 sigma, weighted by their distance."""
    frames = picture(T=2, height=15, width=15).double()
    out = apply_draw(frames.byte(), still(15, 15, blur_sigma=1.4), 15).double()
    for row, column in [(0, 0), (7, 7), (3, 14), (12, 6)]:
        total, expected = 0.0, torch.zeros(2, 3, dtype=torch.float64)
        for down in range(-5, 6):  # ceil(3 * 1.4)
            for across in range(-5, 6):
                weight = math.exp(-(down**2 + across**2) / (2 * 1.4**2))
                place = mirrored(row + down, 15), mirrored(column + across, 15)
                expected += weight * frames[:, place[0], place[1]]
                total += weight
        assert (out[:, :, row, column] - expected / total).abs().max() <= 0.51
    for size in (1, 2, 5):  # less than 3 sigma wide
        small = apply_draw(
            picture(T=1, height=size, width=size), still(size, size, blur_sigma=4.0), size
        )
        assert small.shape == (1, 3, size, size)
    flat = torch.full((1, 20, 20, 3), 130, dtype=torch.uint8)
    assert torch.all(apply_draw(flat, still(20, 20, blur_sigma=2.0), 20) == 130)
    # Defined at 224 pixels; proportionally weaker on smaller frames.
    spec = Augmentation(size=56, blur=1.0, blur_sigma=(2.0, 2.0))
    assert draw_clip(80, 80, spec, np.random.default_rng(0)).blur_sigma == 0.5


def test_crops_keep_area_and_ratio():
    spec = Augmentation(size=32, scale=(0.3, 0.9), **OFF)
    generator = np.random.default_rng(0)
    draws = [draw_clip(100, 120, spec, generator) for _ in range(2000)]
    for d in draws:
        assert 0 <= d.top <= 100 - d.height
        assert 0 <= d.left <= 120 - d.width
        assert 0.29 < d.height * d.width / 12000 < 0.91
        assert 0.73 < d.width / d.height < 1.36
    assert min(d.top for d in draws) == 0
    assert max(d.left for d in draws) > 40
    area = np.array([d.height * d.width / 12000 for d in draws])
    assert area.max() - area.min() > 0.55


def test_a_frame_too_wide_for_any_crop_gets_the_central_one():
    # 640 x 360 with at least 80 % of the area cannot be narrower than 4:3.
    for seed in range(20):
        draw = draw_clip(360, 640, Augmentation(), np.random.default_rng(seed))
        assert (draw.top, draw.left, draw.height, draw.width) == (0, 80, 360, 480)
    assert central_crop(640, 360) == (80, 0, 480, 360)
    assert central_crop(100, 110) == (0, 0, 100, 110)


def test_frequencies():
    spec = Augmentation(size=8)
    generator = np.random.default_rng(0)
    draws = [draw_clip(20, 20, spec, generator) for _ in range(4000)]
    grey = np.mean([any(op == "saturation" and not a for op, a in d.colour) for d in draws])
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([d.blur_sigma > 0 for d in draws]) == pytest.approx(0.4, abs=0.03)
    assert grey == pytest.approx(0.2, abs=0.03)
    assert np.mean([len(d.colour) >= 4 for d in draws]) == pytest.approx(0.8, abs=0.03)
    amounts = np.array([a for d in draws for op, a in d.colour[:4] if op == "brightness"])
    assert amounts.min() < 0.25
    assert amounts.max() > 1.75
    hues = np.array([a for d in draws for op, a in d.colour if op == "hue"])
    assert np.abs(hues).max() <= 0.2
    half = Augmentation(size=8, strength=0.5, jitter=1.0)
    for _ in range(100):
        colour = dict(draw_clip(20, 20, half, generator).colour[:4])
        assert 0.6 <= colour["brightness"] <= 1.4
        assert abs(colour["hue"]) <= 0.1


def test_eval_transform_takes_the_central_crop():
    frames = picture(T=3, height=36, width=64)
    square = eval_transform(frames, 24)
    assert square.shape == (3, 3, 24, 24)
    assert torch.equal(square, apply_draw(frames, still(36, 48, left=8), 24))
    assert torch.equal(eval_transform(frames[:, :, :36], 36), frames[:, :, :36].permute(0, 3, 1, 2))


def test_wrong_input():
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        augment_clip(picture().float(), Augmentation(size=8), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\), got \(4, 3, 40, 56\)"):
        eval_transform(picture().permute(0, 3, 1, 2), 8)
    for wrong in ({"flip": 1.5}, {"strength": -1}, {"scale": (0.0, 1.0)}, {"ratio": (2, 1)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Augmentation(**wrong)
    with pytest.raises(ValueError, match="'gamma'"):
        apply_draw(picture(), still(40, 56, colour=(("gamma", math.pi),)), 8)


@pytest.mark.parametrize(
    ("option", "limits"),
    [("scale", "0 < low <= high <= 1, got 0.5, 1.5"), ("ratio", "low <= high,")],
)
def test_limits_are_named(option, limits):
    wrong = (0.5, 1.5) if option == "scale" else (1.5, 0.5)
    with pytest.raises(ValueError, match=rf"{option} must be \(low, high\), .*{limits}"):
        Augmentation(**{option: wrong})
