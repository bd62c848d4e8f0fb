"""Speech that needs no download: speakers and their utterances by espeak-ng, with the place of every phone.

A speaker is a voice of espeak (an accent and a variant), pitch, rate and liveliness, the length of a vocal tract (the
samples are played a little faster or slower, which moves the formants), and a microphone: level, tilt, and noise of a
colour. Utterances of one speaker differ in text and, a little, in all of these but voice and tract. Everything is a
function of (seed, speaker, utterance), so an utterance alone is the same as within its corpus.
"""

from typing import NamedTuple

import numpy as np
import soxr
from jaxtyping import Float32, Int16, Int64

from stec.audio import espeak
from stec.audio.espeak import PHONES, SILENCE
from stec.audio.labels import Intervals
from stec.audio.sentences import draw_sentence

RATE = 16_000
SHORTEST, LONGEST = 4.0, 14.0  # seconds of an utterance
# Variants of espeak that sound like people and are intelligible in all accents.
_WOMEN = "f1 f2 f3 f4 f5 linda steph belinda aunty grandma Annie anika"
_MEN = "m1 m2 m3 m4 m5 m6 m7 m8 Alex Denis Diogo Nguyen john max michel miguel pablo paul quincy travis klatt adam"
_ORDER, _SPEAKER, _UTTERANCE = 1, 2, 3  # what a draw is for: numpy takes (seed, 1) and (seed, 1, 0) for one seed
_ACCENTS = ("en-US", "en", "en-US-nyc", "en-GB-x-rp", "en-US", "en-GB-scotland")


class Speaker(NamedTuple):
    """A voice and its microphone; `ordinal` counts the speakers of a seed from 0."""

    ordinal: int
    accent: str
    variant: str
    words_per_minute: float
    pitch: float  # 0 to 99, of the variant's own range
    pitch_range: float  # 0 to 99
    tract: float  # above 1: formants (and pitch) higher, as of a shorter vocal tract
    level: float  # dB, root mean square of the speech, to full scale
    tilt: float  # of the filter 1 + tilt / z: above 0 darker, below 0 brighter
    noise: float  # dB of signal to noise
    colour: float  # power of the noise ~ frequency ** -colour

    @property
    def name(self) -> str:
        """The speaker's number in files, as LibriSpeech has them."""
        return str(1001 + self.ordinal)


class Utterance(NamedTuple):
    """Speech at 16 kHz, its phones (of `PHONES`, from first sample to last without gaps), and what was said."""

    waveform: Int16[np.ndarray, " n"]
    phones: Intervals
    text: str


def draw_speaker(ordinal: int, *, seed: int) -> Speaker:
    """Speaker `ordinal` of `seed`: women and men in turn; a voice returns only after all others have had their turn."""
    variants = (_WOMEN, _MEN)[ordinal % 2].split(" ")
    turn, place = divmod(ordinal // 2, len(variants))
    order = np.random.default_rng([_ORDER, seed, ordinal % 2, turn]).permutation(len(variants))
    generator = np.random.default_rng([_SPEAKER, seed, ordinal])
    return Speaker(
        ordinal=ordinal,
        accent=_ACCENTS[ordinal // 2 % len(_ACCENTS)],
        variant=variants[order[place]],
        words_per_minute=generator.uniform(145, 195),
        pitch=generator.uniform(35, 65),
        pitch_range=generator.uniform(35, 75),
        tract=generator.uniform(0.94, 1.07),
        level=generator.uniform(-29, -21),
        tilt=generator.uniform(-0.3, 0.3),
        noise=generator.uniform(25, 40),
        colour=generator.uniform(0, 1),
    )


def utterance(speaker: Speaker, number: int, *, seed: int) -> Utterance:
    """Utterance `number` of a speaker, 4 to 14 s of a few sentences: a function of the arguments alone."""
    generator = np.random.default_rng([_UTTERANCE, seed, speaker.ordinal, number])
    while True:
        words = speaker.words_per_minute * generator.uniform(0.08, 0.17)  # 5 to 10 s
        text = draw_sentence(generator)
        while len(text.split()) < words:
            text += " " + draw_sentence(generator)
        said = synthesise(speaker, text, generator=generator)
        if SHORTEST * RATE <= len(said.waveform) <= LONGEST * RATE:
            return said


def synthesise(speaker: Speaker, text: str, *, generator: np.random.Generator) -> Utterance:
    """`text` as said by `speaker`, with the mild variation and the noise that `generator` draws.

    Raises ValueError as `stec.audio.espeak.speak`.
    """
    spoken = espeak.speak(
        text,
        accent=speaker.accent,
        variant=speaker.variant,
        words_per_minute=round(speaker.words_per_minute * generator.uniform(0.93, 1.07)),
        pitch=round(speaker.pitch + generator.uniform(-5, 5)),
        pitch_range=round(speaker.pitch_range + generator.uniform(-8, 8)),
    )
    rate = spoken.rate * speaker.tract
    voice = soxr.resample(spoken.samples.astype(np.float32) / 32768, rate, RATE, quality="HQ")
    voice[1:] += np.float32(speaker.tilt) * voice[:-1].copy()
    lead = int(generator.uniform(0.05, 0.3) * RATE)
    starts = np.minimum(np.rint(spoken.starts * (RATE / rate)).astype(np.int64), len(voice) - 1)
    # The level is that of the speech, not of the pauses.
    silent = np.array([name == SILENCE for name in spoken.phones])
    speech = np.repeat(~silent, np.diff(starts, append=len(voice)))
    loudness = np.sqrt(np.mean(voice[speech].astype(np.float64) ** 2))
    gain = 10 ** ((speaker.level + generator.uniform(-1.5, 1.5)) / 20) / loudness
    gain = min(gain, 0.9 / float(np.abs(voice).max()))
    hiss = 10 ** (-(speaker.noise + generator.uniform(-2, 2)) / 20) * gain * loudness
    sound = np.float32(hiss) * _noise(lead + len(voice), colour=speaker.colour, generator=generator)
    sound[lead:] += np.float32(gain) * voice
    waveform = np.rint(sound.clip(-1, 1) * 32767).astype(np.int16)
    starts += lead
    if silent[0]:
        starts[0] = 0
        names = spoken.phones
    else:
        starts, names = np.concatenate([[0], starts]), (SILENCE, *spoken.phones)
    edges = np.append(starts, len(waveform)) / RATE
    return Utterance(waveform, Intervals(edges[:-1], edges[1:], names), text)


def cpc_labels(said: Utterance) -> Int64[np.ndarray, " t"]:
    """The phone at each 10 ms as an index into `PHONES`: label i is that of sample 160 i + 200, the middle of frame i.

    (n - 400) // 160 + 1 labels, as those of the CPC task have for utterances of LibriSpeech (Oord et al. 2018): Kaldi's
    frames of 25 ms at every 10 ms.

    >>> phones = Intervals(np.array([0, 0.02]), np.array([0.02, 0.045]), ("sil", "AA"))
    >>> cpc_labels(Utterance(np.zeros(720, dtype=np.int16), phones, "Ah."))
    array([0, 1, 1])
    """
    middles = 160 * np.arange((len(said.waveform) - 400) // 160 + 1) + 200
    ids = np.array([PHONES.index(name) for name in said.phones.names], dtype=np.int64)
    starts = np.rint(said.phones.starts * RATE)  # whole samples again
    return ids[np.searchsorted(starts, middles, side="right") - 1]


def _noise(n: int, *, colour: float, generator: np.random.Generator) -> Float32[np.ndarray, " n"]:
    """Noise of variance 1 whose power falls as frequency ** -colour: 0 is white, 1 is pink."""
    m = 1 << (n - 1).bit_length()  # of a fast transform
    spectrum = np.fft.rfft(generator.standard_normal(m, dtype=np.float32))
    power = np.zeros(len(spectrum))
    power[1:] = np.arange(1, len(spectrum)) ** -colour
    spectrum *= np.sqrt(power * (len(power) / power.sum())).astype(np.float32)
    return np.fft.irfft(spectrum, m)[:n].astype(np.float32)
