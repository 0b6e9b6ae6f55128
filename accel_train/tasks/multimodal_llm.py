"""Phase 2 of a multimodal language model: the decoder learns to caption what the aligned encoders see and hear."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.contrastive import Backbone
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.config.schema import RunConfig
from accel_train.data.captions import CaptionDataset, caption_tokens
from accel_train.data.dataset import Dataset
from accel_train.data.spoken_split import open_spoken_split
from accel_train.data.tokenizer_files import export_tokenizer, find_tokenizer
from accel_train.errors import UserError
from accel_train.models.lora import merged, save_adapter
from accel_train.models.multimodal_files import (
    LLM_FOLDER,
    is_export_of_phase_1,
    load_multimodal,
    read_senses,
    save_decoder,
    save_senses,
)
from accel_train.models.multimodal_llm import MultimodalLlm, build_decoder, caption_losses
from accel_train.models.pretrained import load_strictly
from accel_train.tasks.encoder_features import check_stored, example_vectors, refuse_trained_encoders
from accel_train.tasks.task import Batch, Task

IGNORED = -100
LLM = "llm."
FRESH = (LLM, "projector.")
"""What phase 1 does not have, by the beginning of its names."""
LEFT_BEHIND = ("text_encoder.", "aligner.text.", "logit_scale")
"""What phase 2 has no use for."""


class MultimodalLlmTask(Task):
    """Captions token by token; teacher-forced accuracy and exact match of greedy decoding as scores."""

    config: MultimodalLlmConfig
    config_class: ClassVar[type[RunConfig]] = MultimodalLlmConfig
    score_names: tuple[str, ...] = ("token_accuracy", "exact_match")

    @property
    def senses(self) -> tuple[str, ...]:
        model = self.config.model
        return tuple(kind for kind, section in (("image", model.image), ("audio", model.audio)) if section is not None)

    def build_model(self) -> nn.Module:
        model, tokens = self.config.model, caption_tokens(self.config.data)
        prefix = len(self.senses) * (model.projector.num_tokens if model.projector else 0)
        decoder = build_decoder(
            model.llm,
            vocab_size=tokens.tokenizer.vocab_size,
            end_id=tokens.end_id,
            pad_id=tokens.pad_id,
            attention=model.attention,
            length=len(tokens.start_ids) + prefix + tokens.max_length,
        )
        built = MultimodalLlm(self.config, decoder, tokens.start_ids, tokens.end_id, tokens.pad_id).train()
        if self.config.data.features is not None:
            refuse_trained_encoders(built, self.config, self.senses)
        return built

    def check_splits(self, model: nn.Module | None, splits: list[str]) -> list[str]:
        if self.config.data.features is None:
            return []
        check_stored(model, self.config, self.senses, splits)
        return [f"the encoders don't run; what they give is read from {self.config.data.features}"]

    def build_dataset(self, split: str) -> Dataset:
        return CaptionDataset(self.config.data, split, seed=self.config.seed, senses=self.senses)

    def num_samples(self, split: str) -> int:
        return open_spoken_split(self.config.data.path, split).num_samples

    def example_batch(self, num_rows: int) -> Batch:
        data = self.config.data
        ids = torch.zeros(num_rows, caption_tokens(data).max_length, dtype=torch.int64)
        batch = {"input_ids": ids, "is_target": torch.ones_like(ids)}
        if data.features is not None:
            return batch | example_vectors(data, self.senses, num_rows)
        if "image" in self.senses:
            batch["pixel_values"] = torch.zeros(num_rows, 3, data.image_size, data.image_size, dtype=torch.uint8)
        if "audio" in self.senses:
            batch["waveform"] = torch.zeros(num_rows, data.num_audio_samples)
            batch["num_audio_samples"] = torch.full((num_rows,), data.num_audio_samples)
        return batch

    def hazards(self) -> list[str]:
        if self.senses and self.config.initialize_from is None:
            return ["initialize_from is null: aligner and encoders don't come from a run of multimodal_alignment."]
        return []

    def num_targets(self, batch: Batch) -> Tensor:
        return batch["is_target"].sum()

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        targets = batch["input_ids"].masked_fill(batch["is_target"] == 0, IGNORED)
        smoothing = self.config.loss.label_smoothing
        logits = outputs["logits"].float().transpose(1, 2)
        return {"caption": F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=smoothing)}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        ids, is_target = batch["input_ids"], batch["is_target"]
        right = (outputs["logits"].argmax(2) == ids) & is_target.bool()
        return {
            "token_loss": caption_losses(outputs["logits"], ids, is_target).sum(1),
            "num_tokens": is_target.sum(1),
            "num_right": right.sum(1),
            "caption": ids,
            "written": outputs["written"],
            "sample_row": batch["sample_id"],
        }

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """Share of tokens that are right given the true ones before them, of captions written without a fault; the loss
        in nats a token, without label smoothing."""
        num_tokens = predictions["num_tokens"].sum()
        return {
            "token_accuracy": (predictions["num_right"].sum() / num_tokens).item(),
            "exact_match": (predictions["written"] == predictions["caption"]).all(1).double().mean().item(),
            "loss": (predictions["token_loss"].double().sum() / num_tokens).item(),
        }

    def prediction_rows(self, predictions: dict[str, Tensor], split: str) -> Iterator[dict[str, Any]]:
        """Every sample with its caption and the written one, in the order of the split."""
        opened, tokens = open_spoken_split(self.config.data.path, split), caption_tokens(self.config.data)
        for place in predictions["sample_row"].argsort().tolist():
            row = int(predictions["sample_row"][place])
            yield {
                "image_id": opened.images.value("image_id", opened.samples.value("image_row", row)),
                "audio_id": opened.recordings.value("audio_id", opened.samples.value("audio_row", row)),
                "caption": opened.texts.value("text", opened.samples.value("text_row", row)),
                "written": tokens.decode(predictions["written"][place].tolist()),
                "loss": round(float(predictions["token_loss"][place] / predictions["num_tokens"][place]), 6),
            }

    def starting_weights(self, weights: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
        """This task's checkpoint as it is; of one of phase 1 the encoders and the aligner, and the rest starts afresh."""
        if any(name.startswith(LLM) for name in weights):
            return weights, ""
        fresh = {name: value for name, value in model.state_dict().items() if name.startswith(FRESH)}
        unused = LEFT_BEHIND + tuple(
            name
            for kind in ("image", "audio")
            if kind not in self.senses
            for name in (f"{kind}_encoder.", f"aligner.{kind}.")
        )
        taken = {name: value for name, value in weights.items() if not name.startswith(unused)}
        return taken | fresh, "; projector and decoder start afresh"

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        assert isinstance(model, MultimodalLlm)
        if is_export_of_phase_1(folder):
            weights, _ = self.starting_weights(read_senses(folder), model)
            load_strictly(model, weights, f"initialize_from: the weights in {folder}")
        else:
            load_multimodal(model, folder, has_lora=self.config.model.lora is not None)

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        assert isinstance(config, MultimodalLlmConfig)
        llm = str(Path(folder) / LLM_FOLDER)
        # The adapters are in the exported decoder's weights, and its tokenizer lies beside it.
        model = config.model.model_copy(update={"llm": Backbone(pretrained=llm), "lora": None})
        return config.model_copy(
            update={
                "model": model,
                "data": config.data.model_copy(update={"tokenizer": llm, "features": None}),
                "initialize_from": None,
            }
        )

    def export(self, model: nn.Module, folder: str) -> None:
        """`llm/`, a Hugging Face folder of the decoder with the adapters merged, and everything else in one file."""
        assert isinstance(model, MultimodalLlm)
        lora, weights = self.config.model.lora, dict(model.llm.state_dict())
        save_decoder(model, {**weights} if lora is None else merged(weights, lora), folder)
        export_tokenizer(
            find_tokenizer(self.config.data.tokenizer, self.config.data.path), str(Path(folder) / LLM_FOLDER)
        )
        save_senses(model, folder)

    def export_adapter(self, model: nn.Module, folder: str) -> None:
        """The adapters alone, as PeftModel.from_pretrained reads them."""
        assert isinstance(model, MultimodalLlm)
        section = self.config.model
        if section.lora is None:
            raise UserError("this run has no adapters, since model.lora is null.")
        save_adapter(dict(model.llm.state_dict()), section.lora, folder, section.llm.pretrained)
