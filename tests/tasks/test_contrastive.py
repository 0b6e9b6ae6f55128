from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, ChineseCLIPModel

from accel_train.config.contrastive import DistillationSection
from accel_train.data.padding import join, padding_of
from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.losses.contrastive import info_nce, sigmoid_loss
from accel_train.optim.param_groups import freeze, plan_groups, set_train_mode
from accel_train.tasks.contrastive import ContrastiveTask
from tests.activations import activation_bytes


def stacked(dataset) -> dict[str, Tensor]:
    rows = [{name: value[None] for name, value in dataset.read(row, None).items()} for row in range(len(dataset))]
    return join(rows, padding_of(dataset))


def perfect(matches: Tensor, num: int) -> Tensor:
    """Features under which each text has the largest product with the images that match it."""
    features = torch.zeros(num, num)
    features[matches[:, 1], matches[:, 0]] = 1
    return F.normalize(features, dim=-1)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_losses_follow_the_configuration(name, make_config) -> None:
    settings = {"name": name, "positives": "shared", "label_smoothing": 0.1, "chunk_size": 3}
    task = ContrastiveTask(make_config(loss=settings))
    batch = stacked(task.build_dataset("train"))
    outputs = task.build_model().eval()(batch)
    keys = {key: batch[key] for key in ("image_key", "text_key")}
    options = keys | {"positives": "shared", "label_smoothing": 0.1}
    features = outputs["image_features"], outputs["text_features"], outputs["logit_scale"]
    if name == "info_nce":
        expected = info_nce(*features, **options)
    else:
        expected = sigmoid_loss(*features, outputs["logit_bias"], **options)
    losses = task.losses(outputs, batch)
    assert list(losses) == [name]
    torch.testing.assert_close(losses[name], expected)
    shares = [task.losses(outputs, batch | {"anchors": torch.tensor(part)})[name] for part in ((0, 5), (5, 16))]
    torch.testing.assert_close(sum(shares), expected)


def test_texts_go_around_the_ranks_where_no_loss_wants_them_all(make_config) -> None:
    assert ContrastiveTask(make_config(loss={"name": "sigmoid"})).ring_outputs == ("text_features",)
    assert ContrastiveTask(make_config()).ring_outputs == ()
    distilled = make_config(loss={"name": "sigmoid"}).model_copy(
        update={"distillation": DistillationSection(features="stored")}
    )
    assert ContrastiveTask(distilled).ring_outputs == ()


def test_the_log_says_on_cuda_how_info_nce_runs(make_config) -> None:
    cuda = torch.device("cuda")
    (line,) = ContrastiveTask(make_config()).prepare_training(cuda)
    assert line == "InfoNCE runs by chunks of 256 rows: the fused kernel is for global batches of 16,384 and more"
    (line,) = ContrastiveTask(make_config(loss={"chunk_size": 7})).prepare_training(cuda)
    assert line == "InfoNCE runs by chunks of 7 rows: loss.chunk_size asks for it"
    assert ContrastiveTask(make_config(loss={"name": "sigmoid"})).prepare_training(cuda) == []
    assert ContrastiveTask(make_config()).prepare_training(torch.device("cpu")) == []


def test_the_loss_reads_only_the_columns_it_names(make_config) -> None:
    task = ContrastiveTask(make_config())
    batch = stacked(task.build_dataset("train"))
    outputs = task.build_model().eval()(batch)
    assert task.losses(outputs, {name: batch[name] for name in task.loss_columns}).keys() == {"info_nce"}
    assert task.shared_outputs >= {name for name, value in outputs.items() if len(value) != len(batch["sample_id"])}


@pytest.mark.parametrize("type_", ["chinese_clip", "clip", "siglip"])
def test_features_do_not_depend_on_what_a_caption_stands_beside(type_, make_config) -> None:
    eos = {"text_config": {"eos_token_id": 3}} if type_ == "clip" else {}
    task = ContrastiveTask(make_config(model={"type": type_, "size": "tiny", "config": eos}))
    dataset, model = task.build_dataset("train"), task.build_model().eval()
    alone = [{name: value[None] for name, value in dataset.read(row, None).items()} for row in range(len(dataset))]
    lengths = {row["input_ids"].shape[1] for row in alone}
    assert (len(lengths) == 1) == (type_ == "siglip")
    features = torch.cat([model(row)["text_features"] for row in alone])
    torch.testing.assert_close(features, model(stacked(dataset))["text_features"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ["image_features", "text_features"])
def test_an_output_is_left_out_with_its_columns(output, make_config) -> None:
    task = ContrastiveTask(make_config())
    batch = stacked(task.build_dataset("train"))
    rest = {name: column for name, column in batch.items() if name not in task.output_inputs[output]}
    assert output not in task.build_model()(rest)


def test_evaluation_sees_every_image_and_every_text_once(make_config) -> None:
    task = ContrastiveTask(make_config())
    model = task.build_model().eval()
    kept: dict[str, Tensor] = {}
    for dataset in task.evaluation_sets("valid"):
        batch = stacked(dataset)
        kept |= task.predictions(model(batch), batch)
    assert kept["image_row"].tolist() == kept["text_row"].tolist() == list(range(8))
    assert set(task.scores(kept, "valid")) == set(task.score_names)


def test_images_without_a_caption_are_candidates_and_said(make_config, monkeypatch) -> None:
    task = ContrastiveTask(make_config())
    opened = open_split(task.config.data.path, "valid")
    assert task.check_splits(None, ["train", "valid"]) == []
    matches = torch.tensor([[image, text] for text in range(8) for image in (text % 4, 4 + text % 3)])
    monkeypatch.setattr(type(opened), "matches", lambda self: matches)
    (line,) = task.check_splits(None, ["train", "valid"])
    image_id = opened.images.value("image_id", 7)
    assert line.startswith(f"valid: 1 of 8 images have no caption, the first is image_id {image_id}")
    rows = torch.arange(8)
    # The last image looks like every caption: it stands before the right one, and is itself not asked.
    images = torch.eye(8)
    images[7] = 1
    kept = {"image_features": images, "image_row": rows, "text_features": perfect(matches, 8), "text_row": rows}
    scores = task.scores(kept, "valid")
    assert (scores["text_to_image_recall@1"], scores["image_to_text_recall@1"]) == (0, 1)


def test_a_caption_without_an_image_is_named_before_anything_is_encoded(make_config, monkeypatch) -> None:
    task = ContrastiveTask(make_config())
    opened = open_split(task.config.data.path, "valid")
    kept = opened.matches()[opened.matches()[:, 1] < 7]
    monkeypatch.setattr(type(opened), "matches", lambda self: kept)
    text_id = opened.texts.value("text_id", 7)
    with pytest.raises(UserError, match=f"1 of 8 captions have no image.* first is text_id {text_id}"):
        task.check_splits(None, ["valid"])


def test_scores_go_by_rows_and_not_by_positions(make_config) -> None:
    task = ContrastiveTask(make_config())
    matches = torch.tensor([[(i + k) % 8, i] for i in range(8) for k in (0, 1)])
    images, texts = torch.eye(8), perfect(matches, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    kept = {
        "image_features": images[order],
        "image_row": order,
        "text_features": texts,
        "text_row": torch.arange(8),
    }
    scores = task.scores(kept, "valid")
    assert scores["text_to_image_recall@1"] == scores["image_to_text_recall@1"] == scores["mean_recall"] == 1
    wrong = task.scores(kept | {"image_row": order.roll(3)}, "valid")
    assert wrong["mean_recall"] < 0.8
    assert wrong["mean_recall"] == pytest.approx(
        (wrong["text_to_image_mean_recall"] + wrong["image_to_text_mean_recall"]) / 2
    )


def test_rows_counted_twice_are_noticed(make_config) -> None:
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    features = {"image_features": torch.eye(8), "image_row": rows, "text_features": torch.eye(8), "text_row": rows}
    with pytest.raises(RuntimeError, match="twice or not at all"):
        ContrastiveTask(make_config()).scores(features, "valid")


def test_train_metrics(make_config) -> None:
    features = torch.eye(4)
    outputs = {"image_features": features, "text_features": features.roll(1, 0), "logit_scale": torch.tensor([20.0])}
    metrics = ContrastiveTask(make_config()).train_metrics(outputs)
    assert metrics["temperature"] == pytest.approx(0.05)
    assert metrics["in_batch_accuracy/image_to_text"] == metrics["in_batch_accuracy/text_to_image"] == 0
    outputs["text_features"] = features
    assert ContrastiveTask(make_config()).train_metrics(outputs)["in_batch_accuracy/image_to_text"] == 1


def test_pairs_are_sorted_by_their_captions_where_that_saves_padding(make_config) -> None:
    task = ContrastiveTask(make_config(sort_by_length=True))
    dataset = task.build_dataset("train")
    buckets = task.buckets(dataset)
    assert buckets is not None and buckets.window == 1, "each global batch keeps its samples"
    assert buckets.lengths.tolist() == dataset.caption_bytes().tolist()  # type: ignore[attr-defined]
    assert ContrastiveTask(make_config()).buckets(dataset) is None
    siglip = ContrastiveTask(make_config(model={"type": "siglip", "size": "tiny"}, sort_by_length=True))
    with pytest.raises(UserError, match=r"data\.sort_by_length: true would be ignored: a SigLIP"):
        siglip.buckets(dataset)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(make_config) -> None:
    section = {"type": "chinese_clip", "size": "tiny", "config": {"text_config": {"vocab_size": 10}}}
    with pytest.raises(UserError, match=r"data.tokenizer has \d+ tokens, but the text tower embeds 10"):
        ContrastiveTask(make_config(section)).build_model()


def test_clip_without_the_tokenizers_end_token_is_refused(make_config) -> None:
    """CLIP would take every text's feature from its first token, which sees no other."""
    with pytest.raises(UserError, match=r"set model.config.text_config.eos_token_id=3"):
        ContrastiveTask(make_config({"type": "clip", "size": "tiny"})).build_model()
    section = {"type": "clip", "size": "tiny", "config": {"text_config": {"eos_token_id": 3}}}
    ContrastiveTask(make_config(section)).build_model()


def test_planning_needs_no_tokenizer(make_config) -> None:
    with torch.device("meta"):
        ContrastiveTask(make_config(tokenizer="/nowhere")).build_model()


def test_export_is_complete_and_comes_back(make_config, tmp_path: Path) -> None:
    task = ContrastiveTask(make_config())
    model = task.build_model().eval()
    task.export(model, str(tmp_path / "export"))
    batch = stacked(task.build_dataset("train"))
    fresh = task.build_model().eval()
    task.load_pretrained(fresh, str(tmp_path / "export"))
    assert torch.equal(fresh(batch)["text_features"], model(batch)["text_features"])

    tokens = AutoTokenizer.from_pretrained(tmp_path / "export")("红色的花", return_tensors="pt")
    assert tokens["input_ids"][0].tolist() == task.build_dataset("train").read(0, None)["input_ids"].tolist()
    plain = ChineseCLIPModel.from_pretrained(tmp_path / "export").eval()
    found = plain.get_text_features(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    ).pooler_output
    torch.testing.assert_close(F.normalize(found, dim=-1), model(batch)["text_features"][:1], rtol=1e-5, atol=1e-6)


def test_a_vocabulary_file_is_exported_as_a_tokenizer(make_config, dataset_folder: Path, tmp_path: Path) -> None:
    task = ContrastiveTask(make_config(tokenizer=str(dataset_folder / "tokenizer" / "vocab.txt")))
    task.export(task.build_model(), str(tmp_path / "export"))
    text = "红色的花 red flower"
    by_folder = AutoTokenizer.from_pretrained(dataset_folder / "tokenizer")(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(text)["input_ids"] == by_folder


def test_a_tokenizer_beside_other_weights_does_not_overwrite_ours(make_config, dataset_folder, tmp_path: Path) -> None:
    (dataset_folder / "tokenizer" / "model.safetensors").write_bytes(b"other weights")
    (dataset_folder / "tokenizer" / "config.json").write_text('{"model_type": "bert"}')
    task = ContrastiveTask(make_config())
    task.export(task.build_model(), str(tmp_path / "export"))
    assert "logit_scale" in load_file(tmp_path / "export" / "model.safetensors")
    assert '"chinese_clip"' in (tmp_path / "export" / "config.json").read_text()


def test_a_plan_sees_that_patches_are_left_out(make_config) -> None:
    sizes = []
    for ratio in (0.0, 0.5):
        config = make_config({"type": "chinese_clip", "size": "tiny", "mask_ratio": ratio})
        task = ContrastiveTask(config)
        images = {"pixel_values": task.example_batch(8)["pixel_values"]}
        model = task.build_model()
        sizes.append(activation_bytes(model, plan_groups(model, config.optimizer), config, images))
    assert 0.4 < sizes[1] / sizes[0] < 0.7


def test_a_frozen_resnet_trains_nothing_that_could_be_refused(make_config) -> None:
    """No batch_norm key is needed, and its layers stay in eval mode."""
    model = {
        "type": "dual_encoder",
        "projection_dim": 16,
        "image": {"architecture": "resnet", "config": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}},
        "text": {
            "architecture": "bert",
            "config": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
        },
    }
    config = make_config(model)
    with pytest.raises(UserError, match=r"model.batch_norm is refuse, and the model has \d+ BatchNorm layers"):
        ContrastiveTask(config).build_model()
    towers = [{"name": "image", "layers": ["^vision_model"], "lr": 0.0}, {"name": "rest", "layers": ["."], "lr": 1e-3}]
    optimizer = config.optimizer.model_validate({"towers": towers})
    built = ContrastiveTask(config.model_copy(update={"optimizer": optimizer})).build_model()
    freeze(built, plan_groups(built, optimizer))
    set_train_mode(built)
    norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(module.training for module in norms)
