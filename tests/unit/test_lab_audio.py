"""What the lab calls hold music, and what dead air."""

import math
import random
from array import array

import pytest

from moh_ebpf.lab.audio import FRAME, SAMPLE_RATE, SILENCE, Sound, hears, is_clear, measure


def tone(*sounds: Sound, seconds: float, amplitude: int = 12000, phase: float = 0.4) -> bytes:
    """Raw PCM with the given sounds, one over the other."""
    samples = (
        sum(math.sin(2 * math.pi * sound.value * n / SAMPLE_RATE + phase) for sound in sounds)
        for n in range(round(seconds * SAMPLE_RATE))
    )
    return array("h", (round(amplitude * sample) for sample in samples)).tobytes()


def noise(seconds: float, amplitude: int) -> bytes:
    generator = random.Random(1)
    count = round(seconds * SAMPLE_RATE)
    return array("h", (generator.randint(-amplitude, amplitude) for _ in range(count))).tobytes()


@pytest.mark.parametrize("sound", Sound)
@pytest.mark.parametrize("phase", [0.0, 1.1, 2.9])
def test_each_sound_is_heard_as_itself_and_as_no_other(sound: Sound, phase: float) -> None:
    assert hears(tone(sound, seconds=2.5, phase=phase), 2.5) == sound.label


def test_a_soft_sound_is_heard() -> None:
    assert hears(tone(Sound.MUSIC, seconds=2, amplitude=600), 2) == Sound.MUSIC.label


def test_no_packet_at_all_is_dead_air() -> None:
    assert hears(b"", 2.5) == SILENCE


def test_packets_of_silence_are_dead_air() -> None:
    assert hears(bytes(2 * SAMPLE_RATE * 3), 2.5) == SILENCE


def test_faint_noise_is_dead_air() -> None:
    assert hears(noise(2.5, amplitude=100), 2.5) == SILENCE


def test_a_stray_packet_or_two_are_dead_air_still() -> None:
    assert hears(tone(Sound.AGENT, seconds=0.1), 2.5) == SILENCE


def test_loud_noise_is_no_sound_of_ours() -> None:
    assert hears(noise(2.5, amplitude=10000), 2.5) == "2.5 s of noise in 2.5 s"


def test_two_voices_at_once_are_both_heard() -> None:
    heard = hears(tone(Sound.AGENT, Sound.MUSIC, seconds=2.5), 2.5)
    assert sorted(heard.split(" and ")) == [Sound.AGENT.label, Sound.MUSIC.label]


def test_music_that_breaks_off_is_not_music() -> None:
    assert hears(tone(Sound.MUSIC, seconds=1), 2.5) == "1.0 s of hold music in 2.5 s"


def test_one_sound_after_another_is_measured_apart() -> None:
    seconds, audible = measure(tone(Sound.MUSIC, seconds=1.2) + tone(Sound.AGENT, seconds=0.8))
    assert seconds == pytest.approx({Sound.MUSIC: 1.2, Sound.AGENT: 0.8})
    assert audible == pytest.approx(2.0)


@pytest.mark.parametrize("bytes_left", [1, 2, 2 * FRAME - 1])
def test_what_is_shorter_than_a_packet_is_not_judged(bytes_left: int) -> None:
    assert measure(tone(Sound.MUSIC, seconds=1)[:bytes_left]) == ({}, 0.0)


def test_fragments_are_nothing_clear() -> None:
    pcm = tone(Sound.MUSIC, seconds=1)
    assert [is_clear(hears(pcm, length)) for length in (1.0, 2.5)] == [True, False]
    assert is_clear(hears(b"", 2.5))
    assert is_clear("agent and caller")
    assert not is_clear(hears(noise(2.5, amplitude=20000), 2.5))
