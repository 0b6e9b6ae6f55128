"""Distillation in the contrastive task: which teachers there are, what they see, and what the student loses by them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ChineseCLIPModel

from accel_train.config.contrastive import ContrastiveConfig, DistillationSection
from accel_train.data.feature_file import FeatureFile, write_features
from accel_train.data.padding import join, padding_of
from accel_train.data.pairs import caption_tokenizer
from accel_train.data.splits import open_split
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.errors import UserError
from accel_train.models.cn_clip_files import write_cn_clip
from accel_train.optim.param_groups import plan_groups
from accel_train.randomness import seed_everything
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.teacher import resized

ALL = ["image_features", "text_features", "similarity"]
CPU = torch.device("cpu")
Make = Callable[..., ContrastiveConfig]
TINY: dict[str, Any] = {"type": "chinese_clip", "size": "tiny"}
DUAL: dict[str, Any] = {
    "type": "dual_encoder",
    "projection_dim": 16,
    "image": {"architecture": "convnext", "config": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}},
    "text": {
        "architecture": "bert",
        "config": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32},
    },
}


def with_teacher(config: ContrastiveConfig, **section: Any) -> ContrastiveConfig:
    return config.model_copy(update={"distillation": DistillationSection.model_validate(section)})


@pytest.fixture
def export(make_config: Make, tmp_path: Path) -> Callable[..., str]:
    """export(model section, **data): a folder with a model of random weights, drawn from seed 7."""

    def make(model: dict[str, Any] = TINY, name: str = "teacher", **data: Any) -> str:
        task = ContrastiveTask(make_config(model, **data))
        torch.manual_seed(7)
        task.export(task.build_model(), str(tmp_path / name))
        return str(tmp_path / name)

    return make


@pytest.fixture
def batch(make_config: Make) -> dict[str, Tensor]:
    dataset = ContrastiveTask(make_config()).build_dataset("train")
    rows = [dataset.read(row, None) for row in range(len(dataset))]
    return join([{name: value[None] for name, value in row.items()} for row in rows], padding_of(dataset))


def ready(config: ContrastiveConfig) -> ContrastiveTask:
    task = ContrastiveTask(config)
    task.prepare_training(CPU)
    return task


def losses(task: ContrastiveTask, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a student without dropout."""
    torch.manual_seed(0)
    model = task.build_model().eval()
    model.training = True  # what only training gives, from towers in eval mode
    batch = task.add_to_batch(batch)
    return task.losses(model(batch), {name: batch[name] for name in task.loss_columns})


@pytest.mark.parametrize("model", [TINY, DUAL], ids=["chinese_clip", "dual_encoder"])
def test_a_student_that_is_its_teacher_loses_nothing(model, make_config, export, batch) -> None:
    folder = export(model)
    student = ContrastiveTask.config_of_export(make_config(model), folder)
    task = ready(with_teacher(student, teacher=folder, guides=ALL))
    built = task.build_model().eval()
    task.load_pretrained(built, folder)
    full = task.add_to_batch(batch)
    with torch.no_grad():
        found = task.losses(built(full), {name: full[name] for name in task.loss_columns})
    assert set(found) == {"info_nce", *(f"distillation_{guide}" for guide in ALL)}
    for guide in ALL:
        assert abs(float(found[f"distillation_{guide}"])) < 1e-6
    assert float(found["info_nce"]) > 0.1


def test_weighted_losses_equal_naive_ones(make_config, export, batch) -> None:
    folder = export()
    task = ready(with_teacher(make_config(), teacher=folder, guides=ALL, weight=0.3))
    found = losses(task, batch)
    torch.manual_seed(0)
    student = task.build_model().eval()(batch)
    teacher = task.teacher.model(batch)
    logits, wanted = (
        side["image_features"] @ side["text_features"].T * side["logit_scale"] for side in (student, teacher)
    )
    both = [
        F.kl_div(one.log_softmax(1), other.softmax(1), reduction="batchmean")
        for one, other in ((logits, wanted), (logits.T, wanted.T))
    ]
    torch.testing.assert_close(found["distillation_similarity"], 0.3 * (both[0] + both[1]) / 2, rtol=1e-4, atol=1e-6)
    for kind in ("image", "text"):
        cosine = F.cosine_similarity(student[f"{kind}_features"], teacher[f"{kind}_features"]).mean()
        torch.testing.assert_close(found[f"distillation_{kind}_features"], 0.3 * (1 - cosine))


def test_shares_of_the_rows_add_up(make_config, export, batch) -> None:
    task = ready(with_teacher(make_config(), teacher=export(), guides=ALL))
    outputs = task.build_model().eval()(batch)
    full = task.add_to_batch(batch)
    whole = task.losses(outputs, full)
    parts = [task.losses(outputs, full | {"anchors": torch.tensor(part)}) for part in ((0, 5), (5, 16))]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_the_teacher_is_no_part_of_the_student(make_config, export, batch) -> None:
    config = make_config()
    task = ready(with_teacher(config, teacher=export(), guides=ALL))
    seed_everything(0)
    student = task.build_model()
    seed_everything(0)
    alone = ContrastiveTask(config).build_model()
    assert student.state_dict().keys() == alone.state_dict().keys()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in student.state_dict().items())
    teacher = task.teacher.model
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(value.requires_grad for value in task.add_to_batch(batch).values())


def test_batches_of_an_evaluation_stay_as_they_are(make_config, export) -> None:
    task = ready(with_teacher(make_config(), teacher=export()))
    for dataset in task.evaluation_sets("valid"):
        batch = {name: value[None] for name, value in dataset.read(0, None).items()}
        assert task.add_to_batch(batch) is batch


def test_the_teacher_sees_its_own_size_and_normalisation(make_config, export, batch) -> None:
    """Against transformers' model on Pillow's images."""
    own = {"image_size": 16, "image_mean": [0.5, 0.5, 0.4], "image_std": [0.3, 0.5, 0.5]}
    folder = export(**own)
    task = ContrastiveTask(with_teacher(make_config(), teacher=folder, guides=["image_features"]))
    assert any("32 px are resized to its 16 px" in note for note in task.prepare_training(CPU))
    pixels = []
    for image in batch["pixel_values"]:
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
        levels = torch.from_numpy(np.array(small)) / 255
        pixels.append((levels - torch.tensor(own["image_mean"])) / torch.tensor(own["image_std"]))
    plain = ChineseCLIPModel.from_pretrained(folder).eval()
    wanted = plain.get_image_features(pixel_values=torch.stack(pixels).permute(0, 3, 1, 2)).pooler_output
    found = task.add_to_batch(batch)["teacher_image_features"]
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [16, 48])
def test_resizing_is_pillows_to_one_level(size: int) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, found in zip(pixels, resized(pixels, size), strict=True):
        wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        assert (found.permute(1, 2, 0).int() - torch.from_numpy(np.array(wanted)).int()).abs().max() <= 1
    assert resized(pixels, 32) is pixels


def test_a_checkpoint_file_of_the_original_trainer_is_the_same_teacher(make_config, export, batch, tmp_path) -> None:
    # A file doesn't tell the number of heads. The original's are 64 channels wide, so one of them is taken for granted.
    one_head = {"hidden_size": 64, "num_attention_heads": 1}
    vocab_size = caption_tokenizer(make_config().data).vocab_size
    towers = {"vision_config": one_head, "text_config": {**one_head, "vocab_size": vocab_size}}
    folder, file = export({**TINY, "config": towers}), str(tmp_path / "epoch_latest.pt")
    task = ContrastiveTask(ContrastiveTask.config_of_export(make_config(), folder))
    write_cn_clip(task.build_model(), file, epoch=1, step=1, name="test")
    found = [
        ready(with_teacher(make_config(), teacher=source, guides=ALL)).add_to_batch(batch) for source in (folder, file)
    ]
    for name in ("teacher_image_features", "teacher_text_features", "teacher_logit_scale"):
        torch.testing.assert_close(found[0][name], found[1][name])


def test_unequal_widths_are_mapped_by_a_trained_projection(make_config, export, batch, tmp_path) -> None:
    folder = export({**TINY, "config": {"projection_dim": 24}})
    config = with_teacher(make_config(), teacher=folder, guides=["image_features", "similarity"])
    task = ready(config)
    model = task.build_model()
    assert model.get_parameter("teacher_projection.weight").shape == (24, 16)
    full = task.add_to_batch(batch)
    outputs = model(full)
    assert outputs["projected_image_features"].shape == (16, 24)
    assert "projected_text_features" not in outputs
    found = task.losses(outputs, full)["distillation_image_features"]
    projected = F.normalize(outputs["image_features"] @ model.get_parameter("teacher_projection.weight").T, dim=-1)
    wanted = 0.5 * (1 - F.cosine_similarity(projected, full["teacher_image_features"]).mean())
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert model.get_parameter("teacher_projection.weight").grad.any()
    assert "projected_image_features" not in model.eval()(full)

    towers = [{"name": "towers", "layers": ["_model", "al_projection", "text_projection", "logit_scale"], "lr": 1e-3}]
    with pytest.raises(UserError, match=r"'teacher_projection.weight' matches no tower"):
        plan_groups(model, config.optimizer.model_validate({"towers": towers}))
    task.export(model, str(tmp_path / "export"))
    exported = ContrastiveTask.config_of_export(config, str(tmp_path / "export"))
    assert exported.distillation is None
    assert "teacher_projection.weight" not in ContrastiveTask(exported).build_model().state_dict()
    task.load_pretrained(model, str(tmp_path / "export"))  # initialize_from an export leaves the map as it was drawn


def test_similarities_need_no_equal_widths(make_config, export) -> None:
    folder = export({**TINY, "config": {"projection_dim": 24}})
    model = ContrastiveTask(with_teacher(make_config(), teacher=folder, guides=["similarity"])).build_model()
    assert not [name for name, _ in model.named_parameters() if "teacher" in name]


def test_planning_reads_no_teachers_weights(make_config, export) -> None:
    folder = export({**TINY, "config": {"projection_dim": 24}})
    with torch.device("meta"):
        model = ContrastiveTask(with_teacher(make_config(), teacher=folder)).build_model()
    assert model.get_parameter("teacher_projection.weight").shape == (24, 16)


def test_a_plan_says_what_a_live_teacher_holds(make_config, export) -> None:
    task = ContrastiveTask(with_teacher(make_config(), teacher=export()))
    (found,) = task.hazards()
    number = sum(parameter.numel() for parameter in task.build_model().parameters())
    assert f"The teacher's {number:,} parameters are held by every rank" in found


def test_guides_of_a_frozen_tower_are_refused(make_config, export) -> None:
    config = make_config()
    towers = [
        {"name": "image", "layers": ["^vision_model", "^visual_projection"], "lr": 0.0},
        {"name": "rest", "layers": ["."], "lr": 1e-3},
    ]
    optimizer = config.optimizer.model_validate({"towers": towers})
    config = with_teacher(config.model_copy(update={"optimizer": optimizer}), teacher=export(), guides=ALL)
    with pytest.raises(UserError, match="image_features would teach nothing, since the image tower and its projection"):
        ContrastiveTask(config).build_model()


def test_a_teacher_of_texts_must_share_the_vocabulary(make_config, export, dataset_folder, batch, tmp_path) -> None:
    save_tokenizer(caption_vocabulary(["别的字"], 1000), tmp_path / "tokenizer")
    folder = export(tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(UserError, match="has another tokenizer than the run"):
        ready(with_teacher(make_config(), teacher=folder, guides=["similarity"]))
    task = ready(with_teacher(make_config(), teacher=folder, guides=["image_features"]))
    assert task.add_to_batch(batch).keys() >= {"teacher_image_features"}
    for path in Path(folder).glob("*token*"):
        path.unlink()
    (Path(folder) / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"embeds 21128 tokens, and data.tokenizer has \d+"):
        ready(with_teacher(make_config(), teacher=folder, guides=["text_features"]))


def test_a_teacher_that_is_none_is_named(make_config, tmp_path, export) -> None:
    with pytest.raises(UserError, match=r"distillation.teacher: .*nowhere is not a folder"):
        ready(with_teacher(make_config(), teacher=str(tmp_path / "nowhere")))
    folder = export()
    (Path(folder) / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a bert model; a teacher is a model with image and text features"):
        ready(with_teacher(make_config(), teacher=folder))


@pytest.fixture
def stored(make_config, export, tmp_path) -> Callable[..., tuple[str, str]]:
    """The teacher's folder, and a file with its features of the training split."""

    def make(**changes: Any) -> tuple[str, str]:
        folder = export()
        task = ContrastiveTask(ContrastiveTask.config_of_export(make_config(), folder))
        model, found = task.build_model().eval(), {}
        for kind, dataset in zip(("image", "text"), task.evaluation_sets("train"), strict=True):
            rows = [dataset.read(row, None) for row in range(len(dataset))]
            batch = join([{name: value[None] for name, value in row.items()} for row in rows], padding_of(dataset))
            with torch.no_grad():
                found[f"{kind}_features"] = model(batch)[f"{kind}_features"]
            found[f"{kind}_ids"] = [str(row) for row in range(len(dataset))]
        split = open_split(task.config.data.path, "train")
        scale = float(model.state_dict()["logit_scale"].exp())
        values = {**found, "fingerprint": split.fingerprint, "source": "a model", "logit_scale": scale, **changes}
        write_features(tmp_path / "features.safetensors", FeatureFile(**values))
        return folder, str(tmp_path / "features.safetensors")

    return make


def test_stored_features_give_the_live_teachers_loss(make_config, stored, batch) -> None:
    folder, file = stored()
    live, kept = (
        losses(ready(with_teacher(make_config(), guides=ALL, **source)), batch)
        for source in ({"teacher": folder}, {"features": file})
    )
    assert live.keys() == kept.keys()
    for name, value in live.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-6)


def test_features_of_other_data_are_refused(make_config, stored) -> None:
    _, file = stored(fingerprint="0123", dataset="other pairs")
    with pytest.raises(UserError, match=r"holds features of other pairs, not of .*dataset, split train"):
        ready(with_teacher(make_config(), features=file))


def test_features_that_the_guides_lack_are_refused(make_config, stored) -> None:
    _, file = stored(text_features=None, text_ids=[])
    ready(with_teacher(make_config(), features=file))
    with pytest.raises(UserError, match=r"holds no text_features, which distillation.guides asks for"):
        ready(with_teacher(make_config(), features=file, guides=["text_features"]))
    _, file = stored(logit_scale=None)
    with pytest.raises(UserError, match="similarity needs the teacher's temperature"):
        ready(with_teacher(make_config(), features=file, guides=["similarity"]))
