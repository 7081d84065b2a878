"""What a recording holds. The lab's verdicts come from here: from the sound, not from counters.

Pure functions over raw PCM: 16-bit native-endian samples, mono, 8,000 a second.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import Enum
from operator import mul

SAMPLE_RATE = 8000  # Hz, as G.711 has it
FRAME = 160  # samples: one packet of 20 ms
FRAME_SECONDS = FRAME / SAMPLE_RATE

QUIET = 200  # root mean square of a sample: below it a frame is silent (full scale is 32,767)
TONE_SHARE = 0.2  # of a frame's energy: from here on a tone is heard in it, be there others or not
HEARD = 0.6  # of the time listened: from here on a sound is what one hears
DEAD_AIR = 0.2  # seconds of anything audible: below it the line is dead
SILENCE = "dead air"


class Sound(Enum):
    """Who speaks in the lab, each with a tone of its own, in Hz.

    Multiples of 50 Hz have whole cycles in a frame of 20 ms, so that none leaks into another.
    """

    CALLER = 300
    MUSIC = 450
    AGENT = 600
    GREETING = 1000

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {
    Sound.CALLER: "caller",
    Sound.MUSIC: "hold music",
    Sound.AGENT: "agent",
    Sound.GREETING: "greeting",
}


def hears(pcm: bytes, length: float) -> str:
    """What one heard who listened for `length` seconds and received `pcm`.

    Nothing is recorded while no RTP arrives, so a sound is measured against the time listened.
    """
    heard, audible = measure(pcm)
    if audible < DEAD_AIR:
        return SILENCE
    clear = [sound.label for sound, seconds in heard.items() if seconds >= HEARD * length]
    return " and ".join(clear) or _fragments(heard, audible, length)


def is_clear(heard: str) -> bool:
    """Is that which `hears` says a sound, several, or none: no fragments of any?"""
    return all(each == SILENCE or each in _LABELS.values() for each in heard.split(" and "))


def measure(pcm: bytes) -> tuple[dict[Sound, float], float]:
    """The seconds of each sound, longest first, and the seconds of anything audible."""
    counts: Counter[Sound] = Counter()
    audible = 0
    for frame in _frames(pcm):
        energy = float(sum(map(mul, frame, frame)))
        if energy < QUIET**2 * FRAME:
            continue
        audible += 1
        counts.update(sound for sound in Sound if _tone(frame, sound) > TONE_SHARE * energy)
    seconds = {sound: count * FRAME_SECONDS for sound, count in counts.most_common()}
    return seconds, audible * FRAME_SECONDS


def _fragments(heard: dict[Sound, float], audible: float, length: float) -> str:
    parts = [f"{seconds:.1f} s of {sound.label}" for sound, seconds in heard.items()]
    return f"{', '.join(parts) or f'{audible:.1f} s of noise'} in {length:.1f} s"


def _frames(pcm: bytes) -> Iterator[Sequence[int]]:
    """The whole frames of a recording; what is left over is too short to judge."""
    size = FRAME * 2
    samples = array("h", pcm[: len(pcm) // size * size])
    for start in range(0, len(samples), FRAME):
        yield samples[start : start + FRAME]


def _tone(frame: Sequence[int], sound: Sound) -> float:
    """The energy of one tone in a frame, in the unit of its samples squared and summed."""
    cosine, sine = _WAVES[sound]
    real, imaginary = sum(map(mul, frame, cosine)), sum(map(mul, frame, sine))
    return float((real**2 + imaginary**2) * 2 / FRAME)


def _waves(hertz: int) -> tuple[list[float], list[float]]:
    angles = [2 * math.pi * hertz * n / SAMPLE_RATE for n in range(FRAME)]
    return [math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]


_WAVES = {sound: _waves(sound.value) for sound in Sound}
