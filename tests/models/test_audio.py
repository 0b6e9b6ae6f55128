"""Log-mel spectrograms against numpy and Whisper's own, and the audio encoders."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from accel_train.config.multimodal import AudioBackbone, LogMelConv
from accel_train.errors import UserError
from accel_train.models.audio import LogMel, WaveformEncoder, WhisperEncoder, build_audio_encoder, within

WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 20,
    "max_source_positions": 25,
    "vocab_size": 50,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}
WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def sound(num: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (num, length)).astype(np.float32))


def mel(frequency: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1000 Hz, then logarithmic with 27 bands for a factor of 6.4."""
    return np.where(
        frequency < 1000, frequency * 3 / 200, 15 + 27 * np.log(np.maximum(frequency, 1e-9) / 1000) / np.log(6.4)
    )


def naive_log_mel(samples: np.ndarray, num_mels: int, rate: int, window: int, hop: int) -> np.ndarray:
    padded = np.pad(samples, window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = [padded[start : start + window] * hann for start in range(0, len(samples) // hop * hop, hop)]
    power = np.abs(np.fft.rfft(np.stack(frames), axis=1)) ** 2
    grid = np.linspace(0, mel(np.array(rate / 2)), num_mels + 2)
    fine = np.linspace(0, rate / 2, 200001)
    edges = np.interp(grid, mel(fine), fine)
    bins = np.arange(window // 2 + 1) * rate / window
    energy = np.zeros((num_mels, len(frames)))
    for band in range(num_mels):
        low, middle, high = edges[band : band + 3]
        weight = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
        energy[band] = power @ (weight * 2 / (high - low))
    log = np.log10(np.maximum(energy, 1e-10))
    return np.maximum(log, log.max() - 8) / 4 + 1


@pytest.mark.parametrize(("rate", "num_mels", "window", "hop"), [(8000, 20, 200, 80), (16000, 40, 400, 160)])
def test_log_mel_against_numpy(rate: int, num_mels: int, window: int, hop: int) -> None:
    samples = sound(2, rate // 2 + 37)
    samples[1, rate // 4 :] = 0
    found = LogMel(num_mels=num_mels, sample_rate=rate, window=window, hop=hop)(samples)
    for row in range(2):
        wanted = naive_log_mel(samples[row].double().numpy(), num_mels, rate, window, hop)
        assert found[row].shape == wanted.shape
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=2e-4)


def test_log_mel_is_whispers() -> None:
    samples = sound(1, 16000)
    theirs = WhisperFeatureExtractor(feature_size=80, chunk_length=1)(
        samples[0].numpy(), sampling_rate=16000, return_tensors="np"
    )["input_features"][0]
    found = LogMel(num_mels=80, sample_rate=16000, window=400, hop=160)(samples)[0].numpy()
    np.testing.assert_allclose(found, theirs, atol=2e-4)


def test_convolutions_halve_the_frames_and_know_what_is_real() -> None:
    section = LogMelConv(type="log_mel_conv", num_mels=16, width=8, num_layers=2)
    encoder = build_audio_encoder(section, sample_rate=8000, num_samples=8000)
    tokens, real = encoder(sound(3, 8000), torch.tensor([8000, 2000, 0]))
    assert tokens.shape == (3, 25, 8)  # 100 frames, halved twice
    assert real.sum(1).tolist() == [25, 7, 1]
    assert within(torch.tensor([2, 9]), 3).tolist() == [[True, True, False], [True, True, True]]


def test_whisper_gives_what_its_own_encoder_gives() -> None:
    section = AudioBackbone(type="transformers", architecture="whisper", config=WHISPER)
    encoder = build_audio_encoder(section, sample_rate=16000, num_samples=8000).eval()
    assert isinstance(encoder, WhisperEncoder)
    samples = sound(2, 8000)
    whole = WhisperModel(WhisperConfig(**WHISPER)).eval()
    whole.encoder.load_state_dict(encoder.whisper.state_dict())
    tokens, real = encoder(samples, torch.tensor([8000, 3200]))
    wanted = whole.encoder(encoder.log_mel(samples)).last_hidden_state
    torch.testing.assert_close(tokens, wanted)
    assert tokens.shape == (2, 25, 16)
    assert real.sum(1).tolist() == [25, 10]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_waveform_encoders_don_t_hear_the_volume(norm: str) -> None:
    config = WAV2VEC2 | {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    section = AudioBackbone(type="transformers", architecture="wav2vec2", config=config)
    encoder = build_audio_encoder(section, sample_rate=16000, num_samples=1600).eval()
    assert isinstance(encoder, WaveformEncoder)
    assert not [name for name, _ in encoder.named_parameters() if "masked_spec_embed" in name]
    samples, lengths = sound(2, 1600), torch.tensor([1600, 800])
    samples[1, 800:] = 0
    tokens, real = encoder(samples, lengths)
    assert tokens.shape == (2, 78, 16)  # 1600 → 319 → 78
    assert real.sum(1).tolist() == [78, 38]  # 800 → 159 → 38
    torch.testing.assert_close(encoder(3 * samples, lengths)[0], tokens, rtol=1e-3, atol=1e-4)


def test_pretrained_whisper(tmp_path: Any) -> None:
    torch.manual_seed(0)
    whole = WhisperModel(WhisperConfig(**WHISPER))
    whole.save_pretrained(tmp_path / "whisper")
    section = AudioBackbone(type="transformers", pretrained=str(tmp_path / "whisper"))
    encoder = build_audio_encoder(section, sample_rate=16000, num_samples=8000)
    assert isinstance(encoder, WhisperEncoder)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(encoder.whisper.state_dict()[name], value)


@pytest.mark.parametrize(
    ("section", "rate", "samples", "message"),
    [
        (
            {"architecture": "whisper", "config": WHISPER},
            8000,
            8000,
            "data.sample_rate is 8000, but Whisper hears 16000",
        ),
        ({"architecture": "whisper", "config": WHISPER}, 16000, 16000, "Set it to 0.5"),
        ({"architecture": "bert"}, 16000, 16000, "neither whisper nor an encoder of waveforms"),
        ({"architecture": "whispr"}, 16000, 16000, "Nearest: whisper"),
        ({"pretrained": "nowhere"}, 16000, 16000, "model.audio.pretrained: nowhere is not a folder"),
    ],
)
def test_refusals(section: dict[str, Any], rate: int, samples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_audio_encoder(AudioBackbone(type="transformers", **section), sample_rate=rate, num_samples=samples)
