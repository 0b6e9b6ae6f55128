"""Audio encoders: log-mel convolutions of our own, Whisper's encoder, and encoders that read the waveform.

Each gives tokens (n, T, width) and which of them come from real sound, (n, T) booleans. Parameters keep the names that
transformers gives them.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.audio_utils import mel_filter_bank

from accel_train.config.multimodal import AudioBackbone, LogMelConv
from accel_train.errors import UserError
from accel_train.models.dual_encoder import architecture_value, random_architecture
from accel_train.models.pretrained import building_on_meta, load_model, read_config

FLOOR = 1e-10
DYNAMIC_RANGE = 8.0
"""Whisper's: energies more than eight powers of ten below a recording's largest count as that far below."""
WHISPER_RATE, WHISPER_WINDOW, WHISPER_HOP = 16000, 400, 160


class LogMel(nn.Module):
    """Log-mel spectrogram as Whisper takes it (Radford et al. 2022), on the device.

    Hann windows centred on every hop with the signal mirrored at its ends; power in mel bands of Slaney's scale; its
    decadic logarithm m becomes max(m, max over the recording - 8) / 4 + 1.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, *, num_mels: int, sample_rate: int, window: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of bands so narrow that no frequency falls into them
            filters = mel_filter_bank(1 + window // 2, num_mels, 0.0, sample_rate / 2, sample_rate, "slaney", "slaney")
        self.register_buffer("filters", torch.tensor(filters.T, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(n, S) to (n, num_mels, S // hop), in fp32."""
        with torch.autocast(waveform.device.type, enabled=False):
            size = len(self.window)
            spectrum = torch.stft(waveform.float(), size, self.hop, window=self.window, return_complex=True)
            power = spectrum[..., : waveform.shape[1] // self.hop].abs().square()
            energy = (self.filters @ power).clamp(min=FLOOR).log10()
            return energy.maximum(energy.amax((1, 2), keepdim=True) - DYNAMIC_RANGE) / 4 + 1


class ConvBlock(nn.Module):
    """Halves the number of frames: a convolution and a shortcut that averages two neighbours."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.out = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, width, T) to (n, width, ceil(T / 2))."""
        mixed = self.out(F.gelu(self.mix(self.norm(hidden.transpose(1, 2)).transpose(1, 2))))
        return F.avg_pool1d(hidden, 2, ceil_mode=True) + self.dropout(mixed)


class LogMelConvEncoder(nn.Module):
    """A log-mel spectrogram, a convolution, and blocks that each halve the number of frames."""

    def __init__(self, section: LogMelConv, sample_rate: int) -> None:
        super().__init__()
        window, hop = (sample_rate * milliseconds // 1000 for milliseconds in (section.window_ms, section.hop_ms))
        self.log_mel = LogMel(num_mels=section.num_mels, sample_rate=sample_rate, window=window, hop=hop)
        self.width = section.width
        self.stem = nn.Conv1d(section.num_mels, section.width, 3, padding=1)
        self.layers = nn.ModuleList(ConvBlock(section.width, section.dropout) for _ in range(section.num_layers))
        self.norm = nn.LayerNorm(section.width)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (n, S), num_samples (n,): how many of them are real."""
        hidden = F.gelu(self.stem(self.log_mel(waveform)))
        real = num_samples // self.log_mel.hop
        for layer in self.layers:
            hidden, real = layer(hidden), (real + 1) // 2
        return self.norm(hidden.transpose(1, 2)), within(real, hidden.shape[2])


class WhisperEncoder(nn.Module):
    """The encoder of a Whisper model. Its parameters keep their names."""

    def __init__(self, encoder: PreTrainedModel, config: PretrainedConfig) -> None:
        super().__init__()
        self.log_mel = LogMel(
            num_mels=config.num_mel_bins, sample_rate=WHISPER_RATE, window=WHISPER_WINDOW, hop=WHISPER_HOP
        )
        self.whisper = encoder
        self.width = int(config.d_model)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (n, S), num_samples (n,): how many of them are real."""
        tokens = self.whisper(self.log_mel(waveform)).last_hidden_state
        return tokens, within(num_samples // (2 * WHISPER_HOP), tokens.shape[1])


class WaveformEncoder(nn.Module):
    """wav2vec2 and its kin. A recording is brought to mean 0 and variance 1, as they were trained."""

    def __init__(self, encoder: PreTrainedModel, config: PretrainedConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.width = int(config.hidden_size)
        self.strides = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        # Those with a group norm were trained without a mask, on recordings filled up with zeros.
        self.takes_mask = config.feat_extract_norm == "layer"

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (n, S), num_samples (n,): how many of them are real."""
        mask = within(num_samples, waveform.shape[1])
        count = num_samples.clamp(min=1).unsqueeze(1)
        centred = (waveform - (waveform * mask).sum(1, keepdim=True) / count) * mask
        scaled = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        options = {"attention_mask": mask.long()} if self.takes_mask else {}
        tokens = self.encoder(scaled, **options).last_hidden_state
        real = num_samples
        for kernel, stride in self.strides:
            real = (real - kernel).div(stride, rounding_mode="floor") + 1
        return tokens, within(real, tokens.shape[1])


AudioEncoder = LogMelConvEncoder | WhisperEncoder | WaveformEncoder


def within(counts: Tensor, length: int) -> Tensor:
    """(n,) to (n, length): which of the first `length` places are below the row's count, at least one."""
    return torch.arange(length, device=counts.device) < counts.clamp(min=1).unsqueeze(1)


def build_audio_encoder(section: LogMelConv | AudioBackbone, *, sample_rate: int, num_samples: int) -> AudioEncoder:
    """An encoder for recordings of `num_samples` samples; random weights come from torch's generator. Raises UserError."""
    if isinstance(section, LogMelConv):
        hop = sample_rate * section.hop_ms // 1000
        if num_samples // max(hop, 1) < 2 or hop < 1:
            raise UserError(f"data.max_audio_seconds: {num_samples} samples hold no two hops of {section.hop_ms} ms.")
        return LogMelConvEncoder(section, sample_rate)
    where = "model.audio"
    if section.pretrained is None:
        config = random_architecture(section, where, None)
    else:
        config = read_config(section.pretrained, f"{where}.pretrained")
    is_whisper = config.model_type == "whisper"
    if not is_whisper and architecture_value(config, "conv_stride") is None:
        raise UserError(
            f"{where}: {config.model_type} is neither whisper nor an encoder of waveforms such as wav2vec2."
        )
    if is_whisper:
        _check_whisper_inputs(config, sample_rate, num_samples)
    else:
        # Both draw random numbers outside the modules that replay and key them.
        config.apply_spec_augment, config.layerdrop = False, 0.0
    if section.pretrained is None or building_on_meta():
        model = AutoModel.from_config(config, dtype=torch.float32)
    else:
        model = load_model(
            AutoModel, section.pretrained, config, f"{where}.pretrained", ignore=("lm_head.", "quantizer.")
        )
    if is_whisper:
        return WhisperEncoder(model.get_encoder(), config)
    if "masked_spec_embed" in dict(model.named_parameters(recurse=False)):
        model.masked_spec_embed = None
    return WaveformEncoder(model, config)


def _check_whisper_inputs(config: PretrainedConfig, sample_rate: int, num_samples: int) -> None:
    if sample_rate != WHISPER_RATE:
        raise UserError(f"data.sample_rate is {sample_rate}, but Whisper hears {WHISPER_RATE}. Set it to that.")
    wanted = 2 * config.max_source_positions * WHISPER_HOP
    if num_samples != wanted:
        raise UserError(
            f"data.max_audio_seconds makes {num_samples} samples, but this Whisper reads {wanted}. Set it to "
            f"{wanted / WHISPER_RATE:g}."
        )
