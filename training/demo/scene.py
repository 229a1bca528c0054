"""The two generated actions as moving capsules, whose places depend on the phase and its fraction.

World coordinates: x to the right, y up; the picture is about [-1, 1] in both. A pose depends only
on (phase, fraction within the phase), the build of the actor, which is fixed for a video, and a
small sway. So phase + fraction is a frame's true position in the action, and two videos are aligned
where these are equal.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

HIDDEN = -1.0  # a radius below zero draws nothing


@dataclass
class Drawing:
    """Capsules in painting order: ends in world units, one radius per frame, and a colour."""

    frames: int
    ends: list[np.ndarray] = field(default_factory=list)  # each (frames, 4): x0, y0, x1, y1
    radii: list[np.ndarray] = field(default_factory=list)  # each (frames,)
    colours: list[np.ndarray] = field(default_factory=list)  # each (3,), 0 to 1

    def capsule(self, start, end, radius, colour) -> None:
        start = np.broadcast_to(np.asarray(start, float), (self.frames, 2))
        end = np.broadcast_to(np.asarray(end, float), (self.frames, 2))
        self.ends.append(np.concatenate([start, end], axis=1))
        self.radii.append(np.broadcast_to(np.asarray(radius, float), (self.frames,)))
        self.colours.append(np.asarray(colour, float))

    def disc(self, centre, radius, colour) -> None:
        self.capsule(centre, centre, radius, colour)


@dataclass(frozen=True)
class Look:
    """The colours of a video, each (3,) in 0 to 1."""

    background: np.ndarray
    body: np.ndarray  # torso, links
    limb: np.ndarray  # the same hue in another shade
    tool: np.ndarray  # club, gripper
    prop: np.ndarray  # ball, carried object
    ground: np.ndarray


@dataclass(frozen=True)
class Camera:
    """Plane-to-plane view: mirror, shear, tilt, scale, shift and a mild perspective."""

    matrix: np.ndarray  # (2, 2)
    shift: np.ndarray  # (2,)
    vanish: np.ndarray  # (2,), the perspective divisor is 1 + vanish . point

    def project(self, ends: np.ndarray, radii: np.ndarray, side: int):
        """World (..., 4) and (...) to pixels, y down."""
        points = ends.reshape(*ends.shape[:-1], 2, 2)
        depth = 1 + points @ self.vanish
        seen = (points @ self.matrix.T + self.shift) / depth[..., None]
        pixels = (seen * [1, -1] + 1) * (side / 2)
        zoom = np.sqrt(abs(np.linalg.det(self.matrix))) / depth.mean(-1) * (side / 2)
        return pixels.reshape(ends.shape), radii * zoom


def draw_camera(rng: np.random.Generator) -> Camera:
    tilt = np.deg2rad(rng.uniform(-12, 12))
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    shear = np.array([[1, rng.uniform(-0.15, 0.15)], [0, 1]])
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    stretch = np.diag([rng.uniform(0.85, 1.0), 1.0])  # a view slightly from the side
    return Camera(
        matrix=rng.uniform(0.74, 0.98) * rotation @ shear @ stretch @ mirror,
        shift=rng.uniform(-0.1, 0.1, 2),
        vanish=rng.uniform(-0.12, 0.12, 2),
    )


def _luminance(rgb: np.ndarray) -> float:
    return float(rgb @ [0.299, 0.587, 0.114])


def draw_look(rng: np.random.Generator) -> Look:
    """Three hues that contrast with a plain background, which is light or, less often, dark."""
    dark = rng.random() < 0.25
    background = np.array(
        colorsys.hsv_to_rgb(
            rng.random(),
            rng.uniform(0.05, 0.3) if not dark else rng.uniform(0.2, 0.6),
            rng.uniform(0.86, 1.0) if not dark else rng.uniform(0.08, 0.2),
        )
    )

    def contrasting(hue: float) -> np.ndarray:
        while True:
            saturation, value = rng.uniform(0.45, 1.0), rng.uniform(0.3, 1.0)
            rgb = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            if abs(_luminance(rgb) - _luminance(background)) > 0.4:
                return rgb

    hue = rng.random()
    body = contrasting(hue)
    tool = contrasting((hue + rng.uniform(0.3, 0.45)) % 1)
    prop = contrasting((hue + rng.uniform(0.55, 0.7)) % 1)
    return Look(
        background=background,
        body=body,
        limb=0.78 * body + 0.22 * background,
        tool=tool,
        prop=prop,
        ground=0.75 * background + 0.25 * (1.0 if dark else 0.0),
    )


def _vector(x: float, y: float) -> np.ndarray:
    return np.array([x, y])


def _ease(fraction: np.ndarray) -> np.ndarray:
    """Strictly increasing on [0, 1], slower at both ends."""
    return 0.5 * fraction + 0.5 * fraction * fraction * (3 - 2 * fraction)


def _between(keys, phase: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """keys[p] at the start of phase p, keys[p + 1] at its end."""
    keys = np.asarray(keys, float)
    amount = amount.reshape(amount.shape + (1,) * (keys.ndim - 1))
    return keys[phase] + (keys[phase + 1] - keys[phase]) * amount


def _sway(rng: np.random.Generator, frames: int, size: float) -> np.ndarray:
    """(frames, 2): a slow sway like breathing, independent of the phase."""
    time = np.arange(frames)[:, None] / rng.uniform(18, 40, 2) + rng.random(2)
    return size * np.sin(2 * np.pi * time)


def _middle_joint(start: np.ndarray, end: np.ndarray, upper: float, lower: float, side: float):
    """Elbow or knee of a two-link limb, on the left (side > 0) of the way from start to end."""
    way = end - start
    reach = np.clip(np.linalg.norm(way, axis=-1, keepdims=True), 1e-6, upper + lower - 1e-6)
    along = (upper**2 - lower**2 + reach**2) / (2 * reach)
    off = side * np.sqrt(np.maximum(upper**2 - along**2, 0))
    unit = way / np.linalg.norm(way, axis=-1, keepdims=True)
    return start + along * unit + off * unit[..., ::-1] * [-1, 1]


def _heading(angle: np.ndarray) -> np.ndarray:
    """Unit vector at an angle in degrees from straight down, counted anticlockwise."""
    radians = np.deg2rad(angle)
    return np.stack([np.sin(radians), -np.cos(radians)], axis=-1)


def draw_swing(drawing: Drawing, phase, fraction, look: Look, rng: np.random.Generator) -> None:
    """A golfer face-on. Up- and downswing share their arm angles; the club lags on the way down."""
    frames = drawing.frames
    top, end = rng.uniform(130, 165), rng.uniform(-165, -130)
    hinge_top, hinge_end = rng.uniform(70, 100), rng.uniform(-110, -80)
    arm, club = rng.uniform(0.34, 0.4), rng.uniform(0.5, 0.58)
    amount = _ease(fraction)
    angle = _between([0, 0, top, 0, end, end], phase, amount)
    late = np.where(phase == 2, amount**3, amount)
    hinge = _between([0, 0, hinge_top, 0, hinge_end, hinge_end], phase, late)
    weight = _between([0, 0, 0.05, -0.06, -0.12, -0.12], phase, amount)
    turn = _between([0, 0, 70, 10, -75, -75], phase, amount)
    rise = _between([0, 0, 0, 0, 0.12, 0.12], phase, amount)

    ground = -0.8
    sway = _sway(rng, frames, 0.008)
    hips = np.stack([weight, np.full(frames, -0.17)], axis=-1) + sway
    neck = np.stack([0.3 * weight, np.full(frames, 0.3)], axis=-1) + 1.5 * sway
    shoulder = np.stack([0.06 + 0.1 * np.cos(np.deg2rad(turn)), np.zeros(frames)], axis=-1)
    hands = neck - _vector(0, 0.06) + arm * _heading(angle)
    tip = hands + club * _heading(angle + hinge)

    drawing.capsule([-1.6, ground - 0.05], [1.6, ground - 0.05], 0.03, look.ground)
    away = np.where(phase < 3, 0.0, np.where(phase == 3, fraction, 9.0))
    ball = np.array([0, ground + 0.045]) + away[:, None] * [-2.5, 1.4]
    drawing.disc(ball, np.where(away < 1, 0.065, HIDDEN), look.prop)
    for side in (-1, 1):
        heel = rise if side > 0 else np.zeros(frames)  # the trailing foot rises
        foot = np.stack([0.22 * side - 0.6 * heel, ground + heel], axis=-1)
        hip = hips + _vector(0.07 * side, 0)
        knee = _middle_joint(hip, foot, 0.34, 0.34, float(side))
        drawing.capsule(hip, knee, 0.07, look.limb)
        drawing.capsule(knee, foot, 0.055, look.limb)
    drawing.capsule(hips, neck - _vector(0, 0.06), 0.13, look.body)
    drawing.disc(neck + _vector(0, 0.16), 0.11, look.body)
    drawing.capsule(hands, tip, 0.03, look.tool)
    drawing.capsule(tip, tip + 0.09 * _heading(angle + hinge - 80), 0.04, look.tool)
    for side in (-1, 1):
        drawing.capsule(neck - _vector(0, 0.06) + side * shoulder, hands, 0.05, look.limb)
    drawing.disc(hands, 0.06, look.body)


def draw_place(drawing: Drawing, phase, fraction, look: Look, rng: np.random.Generator) -> None:
    """A two-joint arm carries a ball to a pedestal. The way out and the way back look alike."""
    frames = drawing.frames
    table = -0.62
    height = rng.uniform(0.16, 0.32)
    start = np.array([rng.uniform(-0.22, -0.05), table + 0.12])
    goal = np.array([rng.uniform(0.42, 0.58), table + height + 0.12])
    above = goal + _vector(0, rng.uniform(0.32, 0.42))
    rest = np.array([rng.uniform(-0.3, -0.15), rng.uniform(0.28, 0.4)])
    upper, lower = rng.uniform(0.6, 0.68), rng.uniform(0.6, 0.68)
    amount = _ease(fraction)
    grip = _between([rest, rest, start, above, goal, rest], phase, amount)
    bow = np.array([0, 0.05, 0.28, 0, 0.3])[phase] * np.sin(np.pi * amount)
    grip = grip + np.stack([np.zeros(frames), bow], axis=-1)
    still = (phase == 0)[:, None]
    grip = grip + _sway(rng, frames, 0.012) * still
    # Fingers close at the end of the reach and open at the beginning of the return.
    closed = np.select(
        [phase == 1, (phase == 2) | (phase == 3), phase == 4],
        [np.clip(fraction * 6 - 5, 0, 1), 1.0, np.clip(1 - 6 * fraction, 0, 1)],
        0.0,
    )
    gap = 0.15 - 0.05 * closed
    carried = ((phase == 2) | (phase == 3))[:, None]
    thing = np.where(carried, grip, np.where((phase < 2)[:, None], start, goal))
    base = np.array([-0.68, table + 0.34])
    wrist = grip + _vector(0, 0.2)
    elbow = _middle_joint(np.broadcast_to(base, wrist.shape), wrist, upper, lower, 1.0)

    drawing.capsule([-1.6, table - 0.05], [1.6, table - 0.05], 0.05, look.ground)
    foot = goal - _vector(0, 0.12)
    drawing.capsule([foot[0], table], foot - _vector(0, 0.1), 0.1, look.ground)
    drawing.capsule(foot - _vector(0.13, 0.03), foot + _vector(0.13, -0.03), 0.035, look.limb)
    drawing.disc(thing, 0.11, look.prop)
    drawing.capsule([base[0], table], base, 0.12, look.body)
    drawing.capsule(base, elbow, 0.075, look.limb)
    drawing.capsule(elbow, wrist, 0.06, look.body)
    drawing.disc(elbow, 0.09, look.body)
    for side in (-1, 1):
        knuckle = wrist + np.stack([side * gap, np.full(frames, -0.05)], axis=-1)
        fingertip = grip + np.stack([side * gap, np.full(frames, -0.03)], axis=-1)
        drawing.capsule(wrist, knuckle, 0.035, look.tool)
        drawing.capsule(knuckle, fingertip, 0.035, look.tool)
    drawing.disc(wrist, 0.07, look.tool)


def draw_clutter(drawing: Drawing, moving: int, still: int, rng: np.random.Generator) -> None:
    """Shapes of any colour that have nothing to do with the action."""
    for index in range(moving + still):
        colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.8), rng.random()))
        centre = rng.uniform(-1, 1, 2)
        half = rng.uniform(0, 0.25) * _heading(rng.uniform(0, 360))
        radius = rng.uniform(0.05, 0.12)
        drift = rng.uniform(-0.5, 0.5, 2) * (index < moving)
        time = np.arange(drawing.frames)[:, None] / rng.uniform(30, 90)
        place = centre + drift * np.sin(2 * np.pi * (time + rng.random()))
        drawing.capsule(place - half, place + half, radius, colour)


@dataclass(frozen=True)
class Action:
    phases: tuple[str, ...]
    draw: Callable[[Drawing, np.ndarray, np.ndarray, Look, np.random.Generator], None]


ACTIONS: dict[str, Action] = {
    "place": Action(("rest", "reach", "carry", "lower", "return"), draw_place),
    "swing": Action(("address", "backswing", "downswing", "follow-through", "finish"), draw_swing),
}
