"""Draws words into pictures and clips, and spells them as tones, at a continuous rendering level.

Level 0 is clean. With growing level a picture gains a coloured scene, a texture, a rotation and
pixel noise; a sound gains noise and reverberation. The word stays readable at level 1.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from model_adapters.organism.words import CONSONANTS, VOWELS

WIDTH, HEIGHT = 64, 32
FRAMES = 4
SAMPLE_RATE = 16_000
LETTER_SECONDS = 0.06

_LETTERS = CONSONANTS + VOWELS
_TONES = dict(
    zip(_LETTERS, np.geomspace(350.0, 3800.0, len(_LETTERS)), strict=True)
)  # Hz, one per letter


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType, so words cannot be drawn; "
            "reinstall it from a wheel: pip install --force-reinstall pillow"
        )
    return font


def _ink(
    word: str, size: int, angle: float, shift: tuple[float, float]
) -> Float[np.ndarray, "height width"]:
    """Coverage in [0, 1] of the word's strokes, drawn at twice the size and averaged down."""
    canvas = Image.new("L", (2 * WIDTH, 2 * HEIGHT), 0)
    centre = (WIDTH + 2 * shift[0], HEIGHT + 2 * shift[1])
    ImageDraw.Draw(canvas).text(centre, word, fill=255, font=_font(2 * size), anchor="mm")
    canvas = canvas.rotate(angle, resample=Image.Resampling.BILINEAR)
    return np.asarray(canvas.reduce(2), dtype=np.float32) / 255.0


def _scene(level: float, rng: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """A background that goes from blank paper to a striped colour gradient."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j].astype(np.float32)
    low, high = rng.uniform(110, 215, (2, 3))
    direction = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.5 * (np.cos(direction) * (x - 0.5) + np.sin(direction) * (y - 0.5))
    gradient = low + (high - low) * ramp[..., None]
    stripe = np.cos(direction + 1.0) * x * 2 + np.sin(direction + 1.0) * y
    texture = 22.0 * np.sin(2 * np.pi * (rng.uniform(3, 7) * stripe + rng.uniform()))
    paper = rng.uniform(238, 252)
    return (1 - level) * paper + level * (gradient + texture[..., None])


def _expose(
    scene: Float[np.ndarray, "height width 3"],
    ink: Float[np.ndarray, "height width"],
    colour: Float[np.ndarray, "3"],
    level: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "height width 3"]:
    picture = scene * (1 - ink[..., None]) + colour * ink[..., None]
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * (30.0 * level)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def draw_clip(
    word: str, level: float, rng: np.random.Generator, frames: int = FRAMES
) -> list[Image.Image]:
    """`frames` RGB pictures of 64x32 pixels: one word moving slowly over one scene."""
    scene = _scene(level, rng)
    size = int(rng.integers(15, 18))
    angle = float(rng.uniform(-10, 10)) * level
    start, speed = rng.uniform(-2.5, 2.5, 2), rng.uniform(-0.8, 0.8, 2)
    colour = rng.uniform(0, 50, 3)
    pictures = []
    for frame in range(frames):
        dx, dy = start + speed * frame
        pixels = _expose(scene, _ink(word, size, angle, (dx, dy)), colour, level, rng)
        pictures.append(Image.fromarray(pixels))
    return pictures


def draw(word: str, level: float, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of 64x32 pixels with the word on it."""
    return draw_clip(word, level, rng, frames=1)[0]


def spell(word: str, level: float, rng: np.random.Generator) -> Float[np.ndarray, "samples"]:
    """The word as one two-partial tone per letter: float32 mono at 16 kHz, about 0.4 s."""
    seconds = LETTER_SECONDS * rng.uniform(0.95, 1.05)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    envelope = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.006)
    detune = rng.uniform(0.99, 1.01)
    notes = [
        envelope
        * (
            np.sin(2 * np.pi * _TONES[letter] * detune * time)
            + 0.5 * np.sin(2 * np.pi * 1.5 * _TONES[letter] * detune * time)
        )
        for letter in word
    ]
    lead = np.zeros(int(rng.integers(0, 320)))
    tail = np.zeros(1600)
    dry = 0.3 * np.concatenate([lead, *notes, tail])
    wet = dry.copy()
    for delay, gain in ((0.017, 0.45), (0.029, 0.35), (0.053, 0.25)):
        lag = int(delay * SAMPLE_RATE)
        wet[lag:] += level * gain * dry[:-lag]
    noise = rng.standard_normal(len(wet)) * (0.12 * level)
    return (wet + noise).astype(np.float32)
