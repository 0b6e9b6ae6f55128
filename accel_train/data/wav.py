"""WAV files to samples, with the standard library and numpy alone."""

import functools
import io
import math
import wave

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
LOWEST_RATE, HIGHEST_RATE = 2_000, 384_000
"""Samples a second. A header can claim any rate, and the filters and the resampled samples grow with it."""
EXTENSIBLE, PCM = b"\xfe\xff", b"\x01\x00"
"""Format tags of a WAV file. The first says that the tag proper opens the sub-format, 24 bytes later."""
CHUNK = 2**16
"""Output samples that are worked out at once."""
NUM_ZEROS = 16
"""Zero crossings of the resampling filter on each side."""
ROLLOFF = 0.95
"""Cut-off of the resampling filter, as a share of the lower of the two Nyquist frequencies."""


class UnreadableAudio(Exception):
    """A recording can't be decoded; the message says why."""


def read_wav(encoded: bytes) -> tuple[Samples, int]:
    """Samples from -1 to 1, channels averaged, and their rate. Reads PCM of 8 (unsigned), 16, 24 and 32 bits.

    Raises UnreadableAudio for anything else, and for a file that is shorter than its header says or holds no sample.
    """
    try:
        with wave.open(io.BytesIO(_plain_tag(encoded))) as file:
            channels, width, rate, count = file.getparams()[:4]
            data = file.readframes(count)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:  # the last for parts that end beyond the file
        raise UnreadableAudio(f"not a PCM WAV file ({error or 'it ends too early'})") from error
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or channels <= 0 or width not in (1, 2, 3, 4):
        raise UnreadableAudio(
            f"{channels} channels of {8 * width} bits at {rate} Hz; rates from {LOWEST_RATE:,} to {HIGHEST_RATE:,} are read"
        )
    if count == 0 or len(data) != count * channels * width:
        raise UnreadableAudio(f"{len(data)} bytes of samples where its header promises {count * channels * width}")
    return _as_floats(data, width).reshape(-1, channels).mean(1, dtype=np.float32), rate


def _plain_tag(encoded: bytes) -> bytes:
    """With PCM's own tag where the extensible form says PCM: encoders write that form for more than 16 bits or two channels,
    and `wave` knows it from Python 3.12 on only."""
    place = 12
    while place + 8 <= len(encoded):
        name, size = encoded[place : place + 4], int.from_bytes(encoded[place + 4 : place + 8], "little")
        tag, sub_format = (encoded[start : start + 2] for start in (place + 8, place + 32))
        if name == b"fmt ":
            is_pcm = size >= 40 and tag == EXTENSIBLE and sub_format == PCM
            return encoded[: place + 8] + PCM + encoded[place + 10 :] if is_pcm else encoded
        place += 8 + size + size % 2
    return encoded


def _as_floats(data: bytes, width: int) -> Samples:
    if width == 1:
        whole = np.frombuffer(data, np.uint8).astype(np.float64) - 128
    elif width == 3:  # three bytes become the upper three of four
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole, width = padded.view("<i4").ravel().astype(np.float64), 4
    else:
        whole = np.frombuffer(data, f"<i{width}").astype(np.float64)
    return (whole / 2.0 ** (8 * width - 1)).astype(np.float32)


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """Band-limited interpolation (Smith, "Digital Audio Resampling"): a sinc under a Hann window of 16 zero crossings.

    Output sample n lies at the time n / wanted; there are ceil(len x wanted / rate) of them. Beyond the ends is silence.
    """
    if rate == wanted:
        return samples
    divisor = math.gcd(rate, wanted)
    down, up = rate // divisor, wanted // divisor
    filters, reach = _filters(up, down)
    places = np.arange(-(-len(samples) * up // down)) * down
    padded = np.pad(samples, (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
    found = [np.einsum("nk,nk->n", windows[chunk // up], filters[chunk % up]) for chunk in chunks]
    return np.concatenate(found).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _filters(up: int, down: int) -> tuple[npt.NDArray[np.float32], int]:
    """A filter (2 reach + 1 taps) for each of the `up` places that an output sample can have between two input samples."""
    cut_off = ROLLOFF * min(1.0, up / down)
    reach = math.ceil(NUM_ZEROS / cut_off)
    distance = np.arange(-reach, reach + 1)[None, :] - np.arange(up)[:, None] / up
    window = np.cos(np.pi / 2 * np.clip(distance / reach, -1, 1)) ** 2
    filters = np.sinc(cut_off * distance) * window
    filters /= filters.sum(1, keepdims=True)  # a constant stays what it is
    return filters.astype(np.float32), reach


def fit_length(samples: Samples, length: int) -> tuple[Samples, int]:
    """Cut, or padded with silence, to `length`; and how many samples are real."""
    real = min(len(samples), length)
    return np.pad(samples[:length], (0, length - real)), real
