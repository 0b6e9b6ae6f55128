import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from accel_train.config.sequence_classification import ClassifierSection
from accel_train.errors import UserError
from accel_train.models.blocks import checkpoint_activations, repeated_blocks
from accel_train.models.dropout import install_per_sample_dropout, per_sample_masks
from accel_train.models.sequence_classifier import (
    SequenceClassifier,
    build_classifier,
    has_fitting_head,
    load_classifier,
    save_classifier,
)

LABELS = ("games", "science", "web")
VOCAB, PAD = 40, 3
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE_START = {"initializer_range": 0.2}  # so that every token matters
SECTIONS: dict[str, dict[str, Any]] = {
    "llama": TINY | WIDE_START | {"num_key_value_heads": 2},
    "mistral": TINY | WIDE_START | {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": TINY | WIDE_START | {"num_key_value_heads": 2},
    "bert": TINY | WIDE_START | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [5]]


def build(architecture: str = "llama", *, labels: tuple[str, ...] = LABELS, **changes: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    section = ClassifierSection(architecture=architecture, config=SECTIONS[architecture] | changes)
    return build_classifier(section, labels, vocab_size=VOCAB, pad_id=PAD, max_length=16)


def reopen(folder: Path, *, labels: tuple[str, ...] = LABELS) -> SequenceClassifier:
    section = ClassifierSection(pretrained=str(folder))
    return build_classifier(section, labels, vocab_size=VOCAB, pad_id=PAD, max_length=16)


def batch_of(texts: list[list[int]], length: int) -> dict[str, Tensor]:
    ids = torch.tensor([text + [PAD] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", list(SECTIONS))
def test_logits_are_the_same_under_every_padding(architecture: str) -> None:
    model = build(architecture).eval()
    with torch.no_grad():
        alone = torch.cat([model(batch_of([text], len(text)))["logits"] for text in TEXTS])
        for length in (5, 8, 16):
            torch.testing.assert_close(model(batch_of(TEXTS, length))["logits"], alone, rtol=0, atol=1e-6)
    assert alone.shape == (4, 3)
    assert float((alone[0] - alone[3]).abs().max()) > 1e-2  # texts that begin alike


@pytest.mark.parametrize("architecture", list(SECTIONS))
def test_gradients_are_the_same_under_every_padding(architecture: str) -> None:
    found = []
    for length in (5, 16):
        model = build(architecture)
        model(batch_of(TEXTS, length))["logits"].square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", list(SECTIONS))
def test_parameters_keep_the_names_of_transformers(architecture: str) -> None:
    model = build(architecture)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in model.plain.named_parameters()]
    blocks = [name for name, _ in repeated_blocks(model)]
    assert blocks == [f"{'bert.encoder.layer' if architecture == 'bert' else 'model.layers'}.{i}" for i in (0, 1)]


@pytest.mark.parametrize("architecture", list(SECTIONS))
def test_an_export_gives_the_same_logits_in_transformers(architecture: str, tmp_path: Path) -> None:
    model = build(architecture).eval()
    save_classifier(model, str(tmp_path / "export"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    batch = batch_of(TEXTS, 7)
    with torch.no_grad():
        expected = model(batch)["logits"]
        assert torch.equal(plain(**batch).logits, expected)
        assert torch.equal(reopen(tmp_path / "export").eval()(batch)["logits"], expected)
    assert [plain.config.id2label[index] for index in range(3)] == list(LABELS)


def test_weights_from_a_classifiers_folder(tmp_path: Path) -> None:
    source, target = build(), build(initializer_range=0.1)
    save_classifier(source, str(tmp_path / "export"))
    load_classifier(target, str(tmp_path / "export"), "initialize_from")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("labels", [("games", "science"), ("games", "web", "science")])
def test_a_head_for_other_labels_is_drawn_anew(labels: tuple[str, ...], tmp_path: Path) -> None:
    source = build()
    save_classifier(source, str(tmp_path / "export"))
    assert has_fitting_head(str(tmp_path / "export"), LABELS)
    assert not has_fitting_head(str(tmp_path / "export"), labels)
    with pytest.raises(UserError, match=r"initialize_from: .* is no classifier for the labels of this dataset"):
        load_classifier(build(labels=labels), str(tmp_path / "export"), "initialize_from")


def test_a_head_of_another_size(tmp_path: Path) -> None:
    source = build()
    save_classifier(source, str(tmp_path / "export"))
    model = reopen(tmp_path / "export", labels=("a", "b"))
    assert model.plain.score.weight.shape == (2, 16)
    assert torch.equal(model.plain.model.norm.weight, source.plain.model.norm.weight)
    assert torch.equal(model.plain.model.embed_tokens.weight, source.plain.model.embed_tokens.weight)


def test_a_backbone_gets_a_head(tmp_path: Path) -> None:
    backbone = AutoModel.from_config(AutoConfig.for_model("llama", **TINY, vocab_size=VOCAB))
    backbone.save_pretrained(tmp_path / "backbone")
    model = reopen(tmp_path / "backbone")
    assert not has_fitting_head(str(tmp_path / "backbone"), LABELS)
    assert torch.equal(model.plain.model.embed_tokens.weight, backbone.embed_tokens.weight)
    assert model.plain.score.weight.std() > 0


def test_shapes_alone_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = build()
    shapes = {name: parameter.shape for name, parameter in build().named_parameters()}
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_activation_checkpointing_changes_no_gradient(architecture: str) -> None:
    model = build(architecture)
    checkpointed = copy.deepcopy(model)
    assert checkpointed.plain.base_model is checkpointed.get_submodule(checkpointed.plain.base_model_prefix)
    checkpoint_activations(checkpointed)
    for one in (model, checkpointed):
        one(batch_of(TEXTS, 6))["logits"].square().sum().backward()
    for (name, wanted), found in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(found.grad, wanted.grad), name


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_per_sample_dropout_does_not_depend_on_padding(architecture: str) -> None:
    rate = {"attention_dropout": 0.4} if architecture == "llama" else {"attention_probs_dropout_prob": 0.4}
    model = build(architecture, **rate)
    with torch.no_grad():
        plain = build(architecture)(batch_of(TEXTS, 5))["logits"]
    install_per_sample_dropout(model)
    found = []
    for length in (5, 8, 16):
        with torch.no_grad(), per_sample_masks(torch.arange(4), key=1):
            found.append(model(batch_of(TEXTS, length))["logits"])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-5)
    assert float((found[0] - plain).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"architecture": "lama"}, "model.architecture: transformers knows no 'lama'. Nearest: llama"),
        ({"architecture": "llama", "config": {"hiden_size": 8}}, "model.config.hiden_size: llama has no such setting"),
        ({"architecture": "llama", "config": {"vocab_size": 8}}, "model.config.vocab_size: 8 would be ignored"),
        (
            {"architecture": "llama", "config": {"max_position_embeddings": 8}},
            "max_text_length is 16, but the model reads 8",
        ),
        ({"architecture": "clip"}, "transformers has no sequence classifier of the type clip"),
        ({"pretrained": "nowhere"}, "model.pretrained: nowhere is not a folder"),
    ],
)
def test_what_cannot_be_built(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_classifier(ClassifierSection(**section), LABELS, vocab_size=VOCAB, pad_id=PAD, max_length=16)


def test_a_tokenizer_that_is_too_large_for_the_weights(tmp_path: Path) -> None:
    save_classifier(build(), str(tmp_path / "export"))
    section = ClassifierSection(pretrained=str(tmp_path / "export"))
    with pytest.raises(UserError, match=r"data\.tokenizer has 41 tokens, but model\.pretrained embeds 40"):
        build_classifier(section, LABELS, vocab_size=41, pad_id=PAD, max_length=16)
