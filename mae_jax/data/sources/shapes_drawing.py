"""The embedded data set 'shapes': labeled images of plane figures, drawn from an index.

An image is a pure function of (seed, index) and shows the same scene at every resolution: a main
object, whose class is the label, smaller objects of other classes that may overlap it, and a
patterned background. A plain scene has only the main object, larger and without patterns, on a
smooth background. Color, pattern, size, position and rotation do not depend on the class, so only
the outline determines the label.

Lengths in this module are in short sides of the image (1.0 = min(height, width)) unless a name or
comment says pixels or radii; v points down and u to the right.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from mae_jax.runtime.errors import UsageError

CLASSES: tuple[str, ...] = (
    *("circle", "square", "triangle", "hexagon", "star", "cross"),
    *("ring", "crescent", "heart", "arrow", "flower", "capsule"),
)
_MIN_SIDE = 8  # pixels: below this, thin figures may miss every pixel center
_MAX_HIDDEN = 0.3  # of the main object's area; keeps at least 60 % of its pixels visible
_SHADOW = 0.05  # width of the soft shadow around every object
_OBJECT_PATTERNS = ("solid", "gradient", "stripes", "checks", "dots")
_GROUND_PATTERNS = ("gradient", "radial", "split", "bands", "clouds")
_DULL, _VIVID = (0.05, 0.2), (0.2, 0.4)  # chroma
_TURN = 2 * math.pi


class Scene(NamedTuple):
    """An image of H x W pixels and C channels, and its n visible objects, the main one first."""

    image: np.ndarray  # uint8 [H, W, C]
    label: int  # class of the main object, an index into CLASSES
    boxes: np.ndarray  # float32 [n, 4], (y0, x0, y1, x1) in pixels around the visible part
    classes: np.ndarray  # int32 [n]
    masks: np.ndarray  # bool [n, H, W], the visible pixels; no pixel belongs to two objects


class _Paint(NamedTuple):
    """How a surface is colored: a blend of two colors whose weight follows a pattern."""

    pattern: str
    angle: float  # radians
    period: float
    phase: float  # radians
    colors: np.ndarray  # float32 [2, 3] in 0..1


class _Object(NamedTuple):
    kind: int  # index into CLASSES
    y: float
    x: float
    radius: float  # of the circle around the figure
    angle: float  # radians
    paint: _Paint
    rim: float  # width of the outline in radii; 0 is none
    rim_tone: float  # its gray level, 0..1


def _norm(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.sqrt(v * v + u * u)


def _turn(v: np.ndarray, u: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The points' coordinates along axes turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return v * cos + u * sin, u * cos - v * sin


def _fold(v: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points in half of one of five equal sectors: (along, across) the sector's axis."""
    sector, radius = _TURN / 5, _norm(v, u)
    angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)
    return radius * np.cos(angle), radius * np.sin(angle)


def _distance(kind: int, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of class `kind`, in radii, negative inside.

    The points (v, u) are in radii, too. The figures lie in the unit circle and are symmetric in u.
    The distance is exact near the edges, where antialiasing needs it, except at sharp corners.
    """
    u, high = np.abs(u), np.abs(v)
    match CLASSES[kind]:
        case "circle":
            return _norm(v, u) - 0.86
        case "square":
            return np.maximum(high, u) - 0.7
        case "triangle":
            return np.maximum(v, 0.75**0.5 * u - 0.5 * v) - 0.5
        case "hexagon":
            return np.maximum(0.75**0.5 * u + 0.5 * high, high) - 0.8
        case "star":  # five points at radius 1, five notches at 0.45
            along, across = _fold(v, u)
            rise, run = 1 - 0.45 * math.cos(_TURN / 10), 0.45 * math.sin(_TURN / 10)
            return ((along - 1) * run + across * rise) / math.hypot(rise, run)
        case "cross":
            return np.maximum(np.maximum(high, u) - 0.93, np.minimum(high, u) - 0.29)
        case "ring":
            return np.abs(_norm(v, u) - 0.7) - 0.24
        case "crescent":  # one disc minus another; above the horns the tips are nearest
            moon = np.maximum(_norm(v, u) - 0.95, 0.75 - _norm(v + 0.5, u))
            return np.where(v < -0.59, _norm(v + 0.59, u - 0.7446), moon)
        case "heart":  # a square on its corner with a disc on each upper side
            v, center = v - 0.08, 0.52 / math.sqrt(2)
            square = (np.abs(v) + u) / math.sqrt(2) - 0.52
            return np.minimum(square, _norm(v + center, u - center) - 0.52)
        case "arrow":
            head = np.maximum((u * 0.9 - (v + 0.95) * 0.8) / math.hypot(0.9, 0.8), v + 0.05)
            return np.minimum(head, np.maximum(u - 0.25, np.abs(v - 0.4) - 0.5))
        case "flower":
            along, across = _fold(v, u)
            return np.minimum(_norm(along - 0.63, across) - 0.34, _norm(v, u) - 0.52)
        case _:  # capsule
            return _norm(np.maximum(high - 0.59, 0), u) - 0.36


def _share(paint: _Paint, v: np.ndarray, u: np.ndarray, extent: float, scale: int) -> np.ndarray:
    """The second color's share, float32 of (v, u)'s broadcast shape in 0..1.

    `extent` is how far the surface reaches from the origin of (v, u), `scale` the pixels per
    short side.
    """
    v, u = _turn(v, u, paint.angle)
    rate, period, phase = _TURN / paint.period, paint.period, paint.phase
    match paint.pattern:
        case "solid":
            return np.zeros_like(v)
        case "gradient":
            return np.clip(0.5 + v * (0.5 / extent), 0, 1)
        case "radial":
            return np.minimum(_norm(v - 0.3, u) * (0.7 / extent), 1)
        case "split":
            return np.clip(0.5 + (v - 0.4 * extent * math.sin(phase)) * scale, 0, 1)
        case "bands":
            return 0.5 + 0.5 * np.sin(v * rate + phase)
        case "clouds":  # long waves, each bent by the one before it
            wave = np.sin(v * (0.5 * rate) + phase)
            wave = wave + np.sin(u * (0.7 * rate) + 1.3 * wave + 2 * phase)
            return 0.5 + 0.25 * np.sin((v - u) * (0.4 * rate) + wave) + 0.125 * wave
        case "stripes" | "checks":  # the signs of sinusoids, softened over one pixel
            waves = (np.sin(axis * rate + phase) * (scale / rate) for axis in (v, u))
            rows, columns = (np.clip(0.5 + wave, 0, 1) for wave in waves)
            return rows if paint.pattern == "stripes" else rows + columns - 2 * rows * columns
        case _:  # dots
            v, u = ((axis + phase / rate) % period - period / 2 for axis in (v, u))
            return np.clip(0.5 + (0.32 * period - _norm(v, u)) * scale, 0, 1)


def _paint(
    rng: Generator,
    patterns: tuple[str, ...],
    period: float,
    lights: list[float],
    hue: float,
    chromas: tuple[float, float],
) -> _Paint:
    """A random pattern in two colors of the given mean lightness (0..1) and related hues."""
    chroma = rng.uniform(*chromas)
    hues = np.array([hue, hue + rng.uniform(-1.2, 1.2)])[:, None]
    colors = np.array(lights)[:, None] + chroma * np.cos(hues - np.arange(3) * (_TURN / 3))
    colors = np.clip(colors, 0, 1).astype(np.float32)
    pattern = patterns[rng.integers(len(patterns))]
    return _Paint(pattern, rng.uniform(0, _TURN), period, rng.uniform(0, _TURN), colors)


def _plan_object(
    rng: Generator,
    kind: int,
    place: tuple[float, float, float],
    ground: float,
    hue: float,
    patterns: tuple[str, ...] = _OBJECT_PATTERNS,
) -> _Object:
    """An object of class `kind` at `place` (y, x, radius), lighter or darker than the ground."""
    away = rng.uniform(0.24, 0.36) * (1 if rng.uniform() < 0.5 else -1)
    if not 0.05 < ground + away < 0.95:
        away = -away
    # The second color differs in the same direction: neither may blend into the background.
    further = ground + away + math.copysign(rng.uniform(0.12, 0.3), away)
    lights = [ground + away, min(max(further, 0.03), 0.97)]
    period = max(rng.uniform(0.4, 0.75) * place[2], 0.08)
    paint = _paint(rng, patterns, period, lights, hue, _VIVID)
    angle, rim = rng.uniform(0, _TURN), max(rng.uniform(-0.12, 0.12), 0.0)
    return _Object(kind, *place, angle, paint, rim, 0.08 if away > 0 else 0.94)


_Plan = tuple[_Paint, _Object, list[_Object], list[_Object]]


def _plan_plain(rng: Generator, height: float, width: float, classes: int) -> _Plan:
    """A plan with nothing but a large main object in front of a smooth background."""
    light, spread = rng.uniform((0.25, 0.03), (0.75, 0.12)).tolist()
    hues = rng.uniform(0, _TURN, 2).tolist()
    ground = _paint(rng, ("gradient",), 1.0, [light - spread, light + spread], hues[0], _DULL)
    kind, radius = int(rng.integers(classes)), rng.uniform(0.3, 0.46)
    y, x = (radius + rng.uniform() * (side - 2 * radius) for side in (height, width))
    main = _plan_object(rng, kind, (y, x, radius), light, hues[1], ("solid", "gradient"))
    return ground, main, [], []


def _plan(rng: Generator, height: float, width: float, classes: int) -> _Plan:
    """The ground's paint, the main object, and the objects behind and in front of it.

    Positions are drawn as fractions of the frame, so a wider frame only spreads the scene.
    """
    light, spread, period = rng.uniform((0.22, -0.1, 0.3), (0.78, 0.1, 0.6)).tolist()
    lights, hues = [light - spread, light + spread], rng.uniform(0, _TURN, 2).tolist()
    # Dull backgrounds keep the objects in front of them visible.
    ground = _paint(rng, _GROUND_PATTERNS, period, lights, hues[0], _DULL)
    kind, radius = int(rng.integers(classes)), rng.uniform(0.23, 0.41)
    y, x = (radius + rng.uniform() * (side - 2 * radius) for side in (height, width))
    main = _plan_object(rng, kind, (y, x, radius), light, hues[1])
    behind, front = list[_Object](), list[_Object]()
    grid = np.linspace(-radius, radius, 24, dtype=np.float32)
    seen = body = _inside(main, grid[:, None] + y, grid + x)
    for number in range(rng.integers(1, 5)):
        size = max(rng.uniform(0.3, 0.55) * radius, 0.09)
        angle, gap = rng.uniform(0, _TURN), rng.uniform(0.65, 1.05) * radius
        place = (rng.uniform(0.04, 0.96) * height, rng.uniform(0.04, 0.96) * width, size)
        if number == 0:  # one lies on the main object's edge, the others anywhere
            place = (y + gap * math.sin(angle), x + gap * math.cos(angle), size)
        other = int(kind + rng.integers(1, classes)) % classes
        # A hue apart from the main object's keeps both outlines recognizable where they overlap.
        thing = _plan_object(rng, other, place, light, hues[1] + rng.uniform(1.6, 4.6))
        back, apart = rng.uniform() < 0.5, math.hypot(thing.y - y, thing.x - x)
        gaps = (math.hypot(thing.y - a.y, thing.x - a.x) - 0.9 * a.radius for a in behind + front)
        if apart < 0.6 * radius or min(gaps, default=math.inf) < 0.9 * size:
            continue
        if back and apart > 0.95 * radius:
            behind.append(thing)
        else:
            left = seen & ~_inside(thing, grid[:, None] + y, grid + x)
            if left.sum() >= (1 - _MAX_HIDDEN) * body.sum():
                front.append(thing)
                seen = left
    return ground, main, behind, front


def _inside(thing: _Object, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which of the points (y, x) the object covers, bool."""
    v, u = _turn((y - thing.y) / thing.radius, (x - thing.x) / thing.radius, thing.angle)
    return _distance(thing.kind, v, u) < 0


def _draw_object(image: np.ndarray, owner: np.ndarray, thing: _Object, mark: int) -> None:
    """Draws onto image (float32 [3, H, W]) and writes `mark` into owner (int8 [H, W]), in place."""
    scale = min(owner.shape)
    y, x, radius = thing.y * scale, thing.x * scale, thing.radius * scale  # pixels
    reach = radius + _SHADOW * scale + 1
    y0, y1 = max(int(y - reach), 0), min(int(y + reach) + 1, owner.shape[0])
    x0, x1 = max(int(x - reach), 0), min(int(x + reach) + 1, owner.shape[1])
    v = (np.arange(y0, y1, dtype=np.float32)[:, None] + (0.5 - y)) / radius
    u = (np.arange(x0, x1, dtype=np.float32) + (0.5 - x)) / radius
    v, u = _turn(v, u, thing.angle)
    # The unit circle limits the distance beyond sharp corners, where it is too small.
    distance = np.maximum(_distance(thing.kind, v, u), _norm(v, u) - 1) * radius  # pixels
    cover = np.clip(0.5 - distance, 0, 1)
    first, second = thing.paint.colors[:, :, None, None]
    v, u = v * thing.radius, u * thing.radius
    color = first + _share(thing.paint, v, u, 0.8 * thing.radius, scale) * (second - first)
    if thing.rim:
        edge = np.clip(0.5 + distance + thing.rim * radius, 0, 1)
        color += edge * (thing.rim_tone - color)
    view = image[:, y0:y1, x0:x1]
    view *= np.clip(0.7 + distance * (0.3 / (_SHADOW * scale)), 0.7, 1)
    view += cover * (color - view)
    owner[y0:y1, x0:x1][cover > 0.5] = mark


def _mix(image: np.ndarray, channels: int) -> np.ndarray:
    """Float32 [3, H, W] to [channels, H, W]: 1 is luminance (ITU-R BT.601), 3 is RGB.

    For other numbers, channel k weights the primaries by how close they are to its own hue on the
    color circle; the weights are non-negative and sum to 1, so gray stays gray.
    """
    if channels == 3:
        return image
    hues = np.arange(channels)[:, None] * (_TURN / channels)
    weights = (1 + np.cos(hues - np.arange(3) * (_TURN / 3))) / 3
    if channels == 1:
        weights = np.array([[0.299, 0.587, 0.114]])
    return np.tensordot(weights.astype(np.float32), image, axes=1)


def draw(
    index: int,
    *,
    image_size: tuple[int, int],
    seed: int = 0,
    channels: int = 3,
    plain: bool = False,
    classes: int = len(CLASSES),
) -> Scene:
    """Scene number `index` (0 or more) of the infinite set defined by `seed` (0 or more).

    `image_size` is (height, width) in pixels. An index shows the same scene at every size with the
    same proportions; a longer side spreads the objects out, but keeps their shape and size. Only
    the first `classes` of CLASSES are drawn.
    """
    height, width = image_size
    if min(height, width) < _MIN_SIDE or channels < 1:
        raise UsageError(
            f"shapes: {height} x {width} x {channels} is too small, sides take {_MIN_SIDE} or more"
        )
    scale = min(height, width)
    rng = np.random.default_rng([seed, index])
    plan = _plan_plain if plain else _plan
    ground, main, behind, front = plan(rng, height / scale, width / scale, classes)
    v = (np.arange(height, dtype=np.float32)[:, None] + (0.5 - height / 2)) / scale
    u = (np.arange(width, dtype=np.float32) + (0.5 - width / 2)) / scale
    first, second = ground.colors[:, :, None, None]
    extent = 0.5 * math.hypot(height, width) / scale
    image = first + _share(ground, v, u, extent, scale) * (second - first)
    # Marks are positions in the list of objects, main first; painted from back to front.
    things = [main, *behind, *front]
    owner = np.full((height, width), -1, np.int8)
    for mark in (*range(1, len(behind) + 1), 0, *range(len(behind) + 1, len(things))):
        _draw_object(image, owner, things[mark], mark)
    masks = owner == np.arange(len(things), dtype=np.int8)[:, None, None]
    kept = masks.any(axis=(1, 2))
    masks, kinds = masks[kept], np.array([thing.kind for thing in things], np.int32)[kept]
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    starts = rows.argmax(axis=1), columns.argmax(axis=1)
    ends = height - rows[:, ::-1].argmax(axis=1), width - columns[:, ::-1].argmax(axis=1)
    boxes = np.stack((*starts, *ends), axis=1).astype(np.float32)
    levels = (_mix(image, channels) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return Scene(np.ascontiguousarray(levels), main.kind, boxes, kinds, masks)
