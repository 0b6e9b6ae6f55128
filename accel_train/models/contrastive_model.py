"""What all contrastive models share: pixels in, unit features and a clamped logit_scale out."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.contrastive import ContrastiveConfig

STATISTICS_EPS = 1e-6
"""Keeps the gradient of a standard deviation finite where a layer is constant."""
DEFAULT_TEMPERATURE = 0.07
DEFAULT_LOGIT_BIAS = -10.0
"""Start values for random weights (Radford et al. 2021; Zhai et al. 2023)."""


class Encoded(NamedTuple):
    """What a tower gives."""

    features: Tensor
    """(n, D), of any length."""
    tokens: Tensor | None
    """(n, T, W), the last layer's, from which the features are pooled. None where a tower pools out of sight."""
    layers: tuple[Tensor, ...] = ()
    """What every layer of an image tower gives, (n, T, W) or (n, W, height, width), where it was asked for."""


class ContrastiveModel(nn.Module):
    """Two towers whose features are compared by cosine. `set_up` completes it after the weights are there.

    logit_scale holds the log of the inverse temperature and has shape (1,), because ZeRO and FSDP2 refuse 0-d parameters.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    max_logit_scale: float | None
    has_bias: bool
    projected: tuple[str, ...] = ()
    """Whose features, `image` or `text`, training also gives in the width of a teacher."""
    notes: tuple[str, ...] = ()
    """What was done to the weights on their way in, a line each, for the run's log."""

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """Length of image_features and of text_features."""

    @abstractmethod
    def encode_images(self, pixel_values: Tensor, *, with_layers: bool = False) -> Encoded:
        """From (n, 3, S, S) normalised pixels."""

    @abstractmethod
    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """From (n, L) token ids and their mask."""

    def set_up(self, config: ContrastiveConfig, *, random_weights: bool) -> None:
        """Adds what the run's configuration says beside the architecture: pixel statistics, temperature, bias."""
        data, model = config.data, config.model
        for name, values in (("pixel_mean", data.image_mean), ("pixel_std", data.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.max_logit_scale = model.max_logit_scale
        self.has_bias = config.loss.name == "sigmoid"

        held = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        scale, bias = held.get("logit_scale"), held.get("logit_bias")
        temperature = model.temperature
        if temperature is None and (random_weights or scale is None):
            temperature = DEFAULT_TEMPERATURE
        if temperature is not None:
            scale = torch.tensor([math.log(1 / temperature)])
        assert scale is not None
        _set_scalar(self, "logit_scale", scale, learn=model.learn_temperature)
        if self.has_bias or bias is not None:
            if bias is None or random_weights:
                bias = torch.tensor([DEFAULT_LOGIT_BIAS])
            # A bias shared by all pairs cancels in a softmax: under InfoNCE it would be a parameter without a gradient.
            _set_scalar(self, "logit_bias", bias, learn=model.learn_temperature and self.has_bias)

    def project_for_teacher(self, kinds: Sequence[str], width: int) -> None:
        """Adds a learnt linear map, one for both kinds, from the features to those of a teacher of another width.

        Orthogonal rows or columns at the start, so that what is near stays near; drawn from torch's global generator.
        """
        self.projected = tuple(kinds)
        self.teacher_projection = nn.Linear(self.feature_width, width, bias=False)
        if self.teacher_projection.weight.device.type != "meta":
            nn.init.orthogonal_(self.teacher_projection.weight)

    def forward(self, batch: dict[str, Tensor], *, with_tokens: bool = False, num_layers: int = 0) -> dict[str, Tensor]:
        """Features of the towers whose inputs are in the batch, L2-normalised in fp32, with logit_scale (and logit_bias).

        pixel_values: (n, 3, S, S), uint8 as loaded, or floats that are normalised already. input_ids, attention_mask:
        (n, L). Returns image_features (n, D), text_features (n, D), logit_scale (1,), logit_bias (1,) if it is used;
        `with_tokens` adds image_tokens (n, T, W) and text_tokens (n, L, V). For a teacher of another width, train mode
        adds projected_image_features and projected_text_features (n, its width).
        """
        encoded: dict[str, Encoded] = {}
        if "pixel_values" in batch:
            pixel_values = self._normalised(batch["pixel_values"])
            encoded["image"] = self.encode_images(pixel_values, with_layers=num_layers > 0)
        if "input_ids" in batch:
            encoded["text"] = self.encode_texts(batch["input_ids"], batch["attention_mask"])
        outputs = {f"{kind}_features": _unit_length(found.features) for kind, found in encoded.items()}
        if with_tokens:
            outputs |= {f"{kind}_tokens": found.tokens for kind, found in encoded.items() if found.tokens is not None}
        if num_layers > 0 and "image" in encoded:
            outputs["image_statistics"] = layer_statistics(encoded["image"].layers[:num_layers])
        for kind in self.projected if self.training else ():
            if f"{kind}_features" in outputs:
                outputs[f"projected_{kind}_features"] = _unit_length(
                    self.teacher_projection(outputs[f"{kind}_features"])
                )
        outputs["logit_scale"] = clamped_exp(self.logit_scale, self.max_logit_scale)
        if self.has_bias:
            # A copy: ZeRO-3 frees the parameter's own memory when forward returns.
            outputs["logit_bias"] = self.logit_bias.clone()
        return outputs

    def _normalised(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.is_floating_point():
            return pixel_values
        return (pixel_values.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std


def clamped_exp(log_scale: Tensor, largest: float | None) -> Tensor:
    """exp(log_scale), at most `largest`; the gradient is that of exp at the clamped value, never 0.

    Clamping here and not in the optimizer's copy holds under every engine; letting the gradient through lets the
    parameter come back from beyond the limit.
    """
    if largest is not None:
        log_scale = log_scale + (log_scale.clamp(max=math.log(largest)) - log_scale).detach()
    return log_scale.exp()


def layer_statistics(layers: Sequence[Tensor]) -> Tensor:
    """How each layer's channels are spread over an image: five values for each of its W channels, (n, all 5W).

    Mean, standard deviation, smallest and largest over the places, and the mean difference of neighbouring places. Each of
    them is made of mean 0 and variance 1 over the channels. Blur, noise and compression change these more than they change
    what is shown. A layer is (n, W, height, width), or (n, T, W) with its places in one row.
    """
    parts: list[Tensor] = []
    for layer in layers:
        maps = layer if layer.ndim == 4 else layer.transpose(1, 2).unsqueeze(2)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        steps = [maps.diff(dim=axis).abs().flatten(2) for axis in (2, 3)]
        places = maps.flatten(2)
        deviation = (places.var(2, correction=0) + STATISTICS_EPS).sqrt()
        parts += [places.mean(2), deviation, places.amin(2), places.amax(2), torch.cat(steps, 2).mean(2)]
    return torch.cat([F.layer_norm(part, part.shape[1:]) for part in parts], 1)


def _unit_length(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def _set_scalar(model: nn.Module, name: str, value: Tensor, *, learn: bool) -> None:
    """A parameter of shape (1,), or a buffer where it isn't learnt: engines and optimizers then never see it."""
    if name in dict(model.named_parameters(recurse=False)) or name in dict(model.named_buffers(recurse=False)):
        delattr(model, name)
    value = value.detach().to(torch.float32).reshape(1).clone()
    if learn:
        model.register_parameter(name, nn.Parameter(value))
    else:
        model.register_buffer(name, value)
