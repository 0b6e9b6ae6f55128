"""Sequence classifiers of transformers: LLaMA-like decoders, BERT and its kin."""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from accel_train.config.sequence_classification import ClassifierSection
from accel_train.errors import UserError
from accel_train.models.overrides import make_config, merge
from accel_train.models.pretrained import (
    TASK_HEADS,
    building_on_meta,
    load_model,
    load_strictly,
    read_architecture,
    read_config,
)

OWN_HEADS = ("score.", "classifier.", "pre_classifier.", "pooler.", "bert.pooler.")
"""Parts of a classifier that a folder of another task lacks, or holds for other labels: drawn anew then."""
FROM_THE_DATA = ("vocab_size", "pad_token_id")


class SequenceClassifier(nn.Module):
    """A classifier of transformers, called as model(batch); its parameters keep their names.

    Decoders take the logits at a text's last token that is not `pad_token_id`; `build_classifier` makes that the id which
    pads the batches, so they are the same under any padding, here and in transformers alone.
    """

    def __init__(self, plain: PreTrainedModel) -> None:
        super().__init__()
        for name, part in plain.named_children():
            self.add_module(name, part)
        self._plain = (plain,)  # in a tuple, because as a module it would put its own name before those of its parts

    @property
    def plain(self) -> PreTrainedModel:
        """The model of transformers, with the same parts."""
        return self._plain[0]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """input_ids and attention_mask (n, L), padded on the right, to logits (n, num_labels)."""
        found = self.plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return {"logits": found.logits}


def build_classifier(
    section: ClassifierSection, labels: tuple[str, ...], *, vocab_size: int, pad_id: int, max_length: int
) -> SequenceClassifier:
    """A classifier in fp32 for these labels; random weights are drawn from torch's global generator.

    Inside `torch.device("meta")` it has shapes alone. `vocab_size` and `pad_id` are the tokenizer's. Raises UserError.
    """
    if section.pretrained is None:
        config = _random_architecture(section, vocab_size, pad_id)
    else:
        config = _architecture_of(section.pretrained, vocab_size)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"model: transformers has no sequence classifier of the type {config.model_type}.")
    longest = config.to_dict().get("max_position_embeddings")
    if longest is not None and max_length > longest:
        raise UserError(f"data.max_text_length is {max_length}, but the model reads {longest} tokens at most.")
    head_fits = list(labels) == labels_of(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.pad_token_id = pad_id
    config.use_cache = False
    options: dict[str, Any] = {"attn_implementation": section.attention} if section.attention else {}
    try:
        if section.pretrained is None or building_on_meta():
            plain = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, **options)
        else:
            plain = _load(section.pretrained, config, head_fits, options)
    except (ImportError, ValueError) as error:
        raise UserError(f"model: {config.model_type} can't be built. {error}") from error
    if direct := [name for name, _ in plain.named_parameters(recurse=False)]:
        raise UserError(f"model: {type(plain).__name__} has parameters outside its parts ({', '.join(direct)}).")
    return SequenceClassifier(plain).train()


def labels_of(config: PretrainedConfig) -> list[str]:
    """Names of the classes that a configuration knows, by label."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def has_fitting_head(folder: str, labels: tuple[str, ...]) -> bool:
    """Whether a folder holds a classifier for exactly these labels."""
    config = read_config(folder, "model.pretrained")
    is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    return is_classifier and labels_of(config) == list(labels)


def save_classifier(model: SequenceClassifier, folder: str) -> None:
    """Writes what AutoModelForSequenceClassification loads, labels included."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    model.plain.save_pretrained(folder, state_dict=weights)


def load_classifier(model: SequenceClassifier, folder: str, where: str) -> None:
    """Weights of a classifier's folder into a model of the same architecture and labels. Raises UserError."""
    found = read_architecture(folder, where)["model_type"]
    own: PretrainedConfig = model.plain.config
    if found != own.model_type:
        raise UserError(f"{where}: {folder} holds a {found} model, but model is a {own.model_type}.")
    labels = tuple(labels_of(own))
    if not has_fitting_head(folder, labels):
        raise UserError(f"{where}: {folder} is no classifier for the labels of this dataset ({', '.join(labels)}).")
    config = read_config(folder, where)
    plain = load_model(AutoModelForSequenceClassification, folder, config, where)
    load_strictly(model, dict(plain.state_dict()), f"{where}: the weights in {folder}")


def _load(folder: str, config: PretrainedConfig, head_fits: bool, options: dict[str, Any]) -> PreTrainedModel:
    is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    ignore = () if head_fits and is_classifier else (*TASK_HEADS, *OWN_HEADS)
    plain = load_model(AutoModelForSequenceClassification, folder, config, "model.pretrained", ignore=ignore, **options)
    assert isinstance(plain, PreTrainedModel)
    return plain


def _random_architecture(section: ClassifierSection, vocab_size: int, pad_id: int) -> PretrainedConfig:
    name = section.architecture
    if name not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(str(name), list(CONFIG_MAPPING), n=1)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UserError(f"model.architecture: transformers knows no {name!r}.{hint}")
    for key in FROM_THE_DATA:
        if key in section.config:
            raise UserError(
                f"model.config.{key}: {section.config[key]!r} would be ignored; the tokenizer decides it. Take it out."
            )
    known = AutoConfig.for_model(name)
    settings = {"vocab_size": vocab_size, "pad_token_id": pad_id}
    return make_config(type(known), merge(settings, section.config, known, "model.config"), "model.config")


def _architecture_of(folder: str, vocab_size: int) -> PretrainedConfig:
    config = read_config(folder, "model.pretrained")
    embedded = config.get_text_config().vocab_size
    if vocab_size > embedded:
        raise UserError(
            f"data.tokenizer has {vocab_size} tokens, but model.pretrained embeds {embedded}. Take the model's "
            "own tokenizer."
        )
    return config
