"""WAV files of every width, and resampling against the sine itself and against scipy."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from accel_train.data.wav import UnreadableAudio, fit_length, read_wav, resample
from tests.spoken import wav

WAVEFORM = np.array([0.0, 0.5, -0.5, 0.999, -1.0, 0.25])


def encoded(samples: np.ndarray, width: int, channels: int = 1) -> bytes:
    whole = (
        np.round(samples * 2.0 ** (8 * width - 1))
        .clip(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
        .astype(np.int64)
    )
    if width == 1:
        whole += 128
    data = b"".join(int(value).to_bytes(width, "little", signed=width > 1) for value in whole)
    return wav(data, width=width, rate=8000, channels=channels)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width(width: int) -> None:
    samples, rate = read_wav(encoded(WAVEFORM, width))
    assert rate == 8000
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, WAVEFORM, atol=1.01 * 2.0 ** (1 - 8 * width))


def test_channels_are_averaged() -> None:
    left, right = WAVEFORM, WAVEFORM[::-1]
    samples, _ = read_wav(encoded(np.stack([left, right], 1).ravel(), 2, channels=2))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-4)


def as_extensible(plain: bytes, sub_format: int) -> bytes:
    """The same recording with the longer header that encoders write beyond 16 bits, and a chunk before it."""
    guid = sub_format.to_bytes(2, "little") + bytes.fromhex("000000001000800000aa00389b71")
    header = b"\xfe\xff" + plain[22:36] + b"\x16\0" + plain[34:36] + b"\0\0\0\0" + guid
    body = b"WAVEnote\x03\0\0\0abc\0fmt " + len(header).to_bytes(4, "little") + header + plain[36:]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("width", [2, 3, 4])
def test_extensible_headers_of_pcm(width: int) -> None:
    plain = encoded(np.repeat(WAVEFORM, 4), width, channels=4)
    samples, rate = read_wav(as_extensible(plain, 1))
    assert rate == 8000
    np.testing.assert_array_equal(samples, read_wav(plain)[0])


def test_extensible_headers_of_anything_else_are_refused() -> None:
    with pytest.raises(UnreadableAudio, match="not a PCM WAV file"):
        read_wav(as_extensible(encoded(WAVEFORM, 4), 3))  # floats


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"", "not a PCM WAV file"),
        (b"RIFF\x04\x00\x00\x00WAVE", "not a PCM WAV file"),
        (b"ID3" + b"\0" * 100, "not a PCM WAV file"),
        (encoded(WAVEFORM, 2)[:-4], "8 bytes of samples where its header promises 12"),
        (encoded(WAVEFORM[:0], 2), "0 bytes of samples"),
    ],
)
def test_what_can_not_be_read_is_said(damaged: bytes, reason: str) -> None:
    with pytest.raises(UnreadableAudio, match=reason):
        read_wav(damaged)


def test_compressed_wav_is_refused() -> None:
    alaw = bytearray(encoded(WAVEFORM, 2))
    alaw[20] = 6
    with pytest.raises(UnreadableAudio, match="unknown format: 6"):
        read_wav(bytes(alaw))


@pytest.mark.parametrize(
    ("rate", "wanted"), [(8000, 16000), (16000, 8000), (44100, 16000), (8000, 11025), (48000, 16000)]
)
def test_a_tone_stays_the_same_tone(rate: int, wanted: int) -> None:
    def tone(at: int) -> np.ndarray:
        time = np.arange(at // 4) / at
        return np.sin(2 * np.pi * 440 * time) + 0.5 * np.cos(2 * np.pi * 1700 * time)

    found = resample(tone(rate).astype(np.float32), rate, wanted)
    assert len(found) == -(-(rate // 4) * wanted // rate)
    inner = slice(len(found) // 10, -len(found) // 10)  # beyond the ends is silence, which a tone is not
    np.testing.assert_allclose(found[: wanted // 4][inner], tone(wanted)[inner], atol=2e-3)


def test_what_the_lower_rate_can_not_hold_is_gone() -> None:
    high = np.sin(2 * np.pi * 6500 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(high, 16000, 8000)[100:-100]).max() < 0.01


def test_against_scipy() -> None:
    samples = np.convolve(np.random.default_rng(0).normal(size=4000), np.ones(12) / 12, "same").astype(np.float32)
    found, theirs = resample(samples, 8000, 12000), resample_poly(samples, 3, 2)
    assert np.corrcoef(found, theirs)[0, 1] > 0.999


def test_constants_and_equal_rates_are_kept() -> None:
    ones = np.ones(2000, np.float32)
    np.testing.assert_allclose(resample(ones, 8000, 11025)[100:-100], 1, atol=1e-5)
    assert resample(ones, 8000, 8000) is ones


def test_length() -> None:
    cut, real = fit_length(np.arange(5, dtype=np.float32), 3)
    assert (cut.tolist(), real) == ([0, 1, 2], 3)
    padded, real = fit_length(np.arange(2, dtype=np.float32), 4)
    assert (padded.tolist(), real) == ([0, 1, 0, 0], 2)
