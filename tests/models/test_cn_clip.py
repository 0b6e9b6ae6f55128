from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.cn_clip import architecture, names_for
from accel_train.models.cn_clip_files import write_cn_clip
from accel_train.models.export import load_pretrained_weights, save_pretrained
from accel_train.models.sizes import SIZES
from accel_train.optim.weight_decay import cn_clip_name
from tests.models.originals import ChineseCLIP, ModifiedResNet, VisualTransformer, saved, shaken

TOWERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (lambda: ChineseCLIP(VisualTransformer()), 32),
    "vit_rbt3": (lambda: ChineseCLIP(VisualTransformer(), text_layers=3), 32),
    "resnet": (lambda: ChineseCLIP(ModifiedResNet()), 64),
}
"""A tiny original of each kind, and its image size."""


@pytest.fixture(params=TOWERS)
def original(request, tmp_path: Path):
    """The original model, its file, and the run configuration that reads it."""
    build, size = TOWERS[request.param]
    torch.manual_seed(3)
    model = shaken(build())
    torch.save({"epoch": 1, "step": 7, "name": "x", "state_dict": saved(model)}, tmp_path / "cn.pt")
    return model, tmp_path / "cn.pt", size


def section(path: Path, **changes):
    return {"type": "chinese_clip", "pretrained": str(path), "batch_norm": "frozen"} | changes


def inputs(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 100, (5, 12), generator=generator)
    ids[1, 7:] = ids[3, 3:] = 0
    pixels = torch.randn(5, 3, size, size, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids != 0).long()}


def test_features_are_the_originals(original, make_config) -> None:
    theirs, path, size = original
    ours = build_contrastive_model(make_config(section(path), image_size=size)).eval()
    batch = inputs(size)
    outputs = ours(batch)
    images, texts = theirs(batch["pixel_values"], batch["input_ids"])
    torch.testing.assert_close(outputs["image_features"], images, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs["text_features"], texts, rtol=0, atol=1e-6)
    assert outputs["logit_scale"].item() == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)
    assert ours.notes == ()


def test_written_files_hold_the_same_tensors(original, make_config, tmp_path: Path) -> None:
    theirs, path, size = original
    ours = build_contrastive_model(make_config(section(path), image_size=size))
    write_cn_clip(ours, str(tmp_path / "out" / "back.pt"), epoch=2, step=9, name="run")
    written = torch.load(tmp_path / "out" / "back.pt", weights_only=True)
    expected = saved(theirs)
    assert {key: written[key] for key in ("epoch", "step", "name")} == {"epoch": 2, "step": 9, "name": "run"}
    assert list(written["state_dict"]) == list(expected)
    for name, value in expected.items():
        found = written["state_dict"][name]
        assert found.shape == value.shape
        assert found.dtype == value.dtype
        assert torch.equal(found, value), name
    theirs.load_state_dict({name.removeprefix("module."): value for name, value in written["state_dict"].items()})
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["back.pt"]


def test_a_hugging_face_folder_in_between_changes_nothing(original, make_config, tmp_path: Path) -> None:
    _, path, size = original
    config = make_config(section(path), image_size=size)
    first = build_contrastive_model(config)
    save_pretrained(first, str(tmp_path / "folder"), config)
    folder = make_config(section(tmp_path / "folder"), image_size=size, max_text_length=20)
    second = build_contrastive_model(folder)
    third = build_contrastive_model(folder)
    load_pretrained_weights(third, str(path), folder)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
        assert torch.equal(third.state_dict()[name], value), name
    with torch.device("meta"):
        shapes = build_contrastive_model(config).state_dict()
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in first.state_dict().items()
    }


def test_the_order_is_that_of_the_originals_parameters(original, make_config) -> None:
    theirs, path, size = original
    ours = build_contrastive_model(make_config(section(path), image_size=size))
    table = [entry.theirs for entry in names_for(ours.config)]
    parameters = [name for name, _ in theirs.named_parameters()]
    assert [name for name in table if name in parameters] == parameters
    assert set(table) == set(theirs.state_dict())


def test_weight_decay_knows_the_same_names(original, make_config) -> None:
    _, path, size = original
    ours = build_contrastive_model(make_config(section(path), image_size=size))
    for entry in names_for(ours.config):
        for name in entry.ours:
            if name in dict(ours.named_parameters()):
                assert cn_clip_name(name) == entry.theirs


def flash_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a model under flash attention names them: query, key and value fused in BERT too."""
    found = dict(weights)
    for name in weights:
        if ".attn.in_proj_" in name:
            found[name.replace(".in_proj_", ".Wqkv.")] = found.pop(name)
        if name.endswith(("self.query.weight", "self.query.bias")):
            parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            found[name.replace("query", "Wqkv")] = torch.cat(parts)
        if ".attention.output.dense." in name:
            found[name.replace("output.dense", "self.out_proj")] = found.pop(name)
    return found


def test_flash_attention_layout_and_pooler_are_accepted(original, make_config, tmp_path: Path) -> None:
    _, path, size = original
    weights = flash_layout(torch.load(path)["state_dict"])
    assert not any("query" in name for name in weights)
    weights |= {
        "module.bert.pooler.dense.weight": torch.zeros(128, 128),
        "module.bert.pooler.dense.bias": torch.zeros(128),
    }
    torch.save({"state_dict": weights}, tmp_path / "flash.pt")
    plain, fused = (
        build_contrastive_model(make_config(section(file), image_size=size)) for file in (path, tmp_path / "flash.pt")
    )
    assert all(torch.equal(fused.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_half_precision_becomes_fp32(make_config, tmp_path: Path) -> None:
    model = ChineseCLIP(VisualTransformer()).half()
    torch.save(model.state_dict(), tmp_path / "half.pt")  # without DistributedDataParallel and its mapping around it
    ours = build_contrastive_model(make_config(section(tmp_path / "half.pt")))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_what_shapes_cannot_tell_follows_the_original_or_the_configuration(make_config, tmp_path: Path) -> None:
    torch.save(ChineseCLIP(VisualTransformer(width=128)).state_dict(), tmp_path / "cn.pt")
    ruled = build_contrastive_model(make_config(section(tmp_path / "cn.pt"))).config
    assert (ruled.vision_config.num_attention_heads, ruled.text_config.num_attention_heads) == (2, 2)
    assert (ruled.vision_config.hidden_act, ruled.text_config.hidden_act) == ("quick_gelu", "gelu")
    changes = {"vision_config": {"num_attention_heads": 4}, "text_config": {"hidden_dropout_prob": 0.0}}
    changed = build_contrastive_model(make_config(section(tmp_path / "cn.pt", config=changes))).config
    assert (changed.vision_config.num_attention_heads, changed.text_config.hidden_dropout_prob) == (4, 0.0)


@pytest.mark.parametrize("size", [name for name in SIZES["chinese_clip"] if not name.startswith("tiny")])
def test_published_sizes_are_recognised_by_their_shapes(size, make_config) -> None:
    """With every number of heads: ViT-H's are wider than 64."""
    image_size = 336 if size.endswith("336") else 224
    with torch.device("meta"):
        model = build_contrastive_model(make_config(size_section(size), image_size=image_size))
        own, weights = model.state_dict(), {}
        for entry in names_for(model.config):
            parts = [own[name] for name in entry.ours]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            weights[entry.theirs] = value.T if entry.transposed else value
    found = architecture(weights, {}, "there").to_dict()
    for part in ("vision_config", "text_config"):
        expected = model.config.to_dict()[part]
        assert {key: found[part][key] for key in expected if key != "dtype"} == {
            key: value for key, value in expected.items() if key != "dtype"
        }
    assert found["projection_dim"] == model.config.projection_dim


def size_section(size: str) -> dict[str, str]:
    return {"type": "chinese_clip", "size": size, "batch_norm": "frozen"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"hidden_size": 32}}, r"model.config.vision_config.hidden_size is 32.*have 64"),
        ({"text_config": {"num_heads": 4}}, r"model.config.text_config.num_heads: .*Nearest"),
        ({"projection_dim": 31}, r"model.config.projection_dim is 31"),
        ({"text_config": {"num_attention_heads": 3}}, r"model.config: .*multiple"),
    ],
)
def test_changes_that_contradict_the_weights_are_refused(changes, message, make_config, tmp_path: Path) -> None:
    torch.save(ChineseCLIP(VisualTransformer()).state_dict(), tmp_path / "cn.pt")
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(section(tmp_path / "cn.pt", config=changes)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": None}, r"missing: visual.proj"),
        ({"visual.extra": torch.zeros(1)}, r"unexpected: visual.extra"),
        ({"visual.positional_embedding": torch.zeros(16, 64)}, r"positional_embedding has 16 positions"),
        ({"visual.ln_pre.weight": torch.zeros(65)}, r"pre_layrnorm.weight is \(65,\) there and \(64,\) here"),
        ({"visual.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(7)}, r"in_proj_bias has shape \(7,\)"),
        ({"text_projection": torch.zeros(128)}, r"text_projection has shape \(128,\), and 2 dimensions are needed"),
        ({"bert.embeddings.word_embeddings.weight": None}, r"has no bert.embeddings.word_embeddings.weight"),
    ],
)
def test_files_that_are_no_such_model_are_refused(change, message, make_config, tmp_path: Path) -> None:
    weights = ChineseCLIP(VisualTransformer()).state_dict() | change
    torch.save({name: value for name, value in weights.items() if value is not None}, tmp_path / "cn.pt")
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(section(tmp_path / "cn.pt")))


def test_heads_of_an_odd_width_must_be_given(make_config, tmp_path: Path) -> None:
    class Narrow(VisualTransformer):
        def __init__(self) -> None:
            super().__init__(width=64)

    weights = {name: value[..., :32] if "ln_" in name else value for name, value in Narrow().state_dict().items()}
    weights["conv1.weight"] = weights["conv1.weight"][:32]
    model = ChineseCLIP(VisualTransformer()).state_dict() | {f"visual.{name}": v for name, v in weights.items()}
    torch.save(model, tmp_path / "cn.pt")
    with pytest.raises(UserError, match=r"vision_config.num_attention_heads must be given.*width of 32"):
        build_contrastive_model(make_config(section(tmp_path / "cn.pt")))


@pytest.mark.parametrize(("build", "size", "other"), [(TOWERS["vit"][0], 32, 48), (TOWERS["resnet"][0], 64, 96)])
def test_another_image_size_resizes_positions(build, size, other, make_config, tmp_path: Path) -> None:
    torch.save(build().state_dict(), tmp_path / "cn.pt")
    model = build_contrastive_model(make_config(section(tmp_path / "cn.pt"), image_size=other))
    assert "were resized from" in model.notes[0]
    assert model.eval()({"pixel_values": torch.zeros(2, 3, other, other)})["image_features"].shape == (2, 32)
    again = build_contrastive_model(make_config(section(tmp_path / "cn.pt"), image_size=other))
    load_pretrained_weights(again, str(tmp_path / "cn.pt"), make_config(section(tmp_path / "cn.pt"), image_size=other))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_only_chinese_clip_has_the_format(tiny, make_config, tmp_path: Path) -> None:
    for family in ("clip", "convnext"):
        model = build_contrastive_model(make_config(tiny[family]))
        with pytest.raises(UserError, match="hold Chinese-CLIP models alone"):
            write_cn_clip(model, str(tmp_path / "x.pt"), epoch=0, step=0, name="x")
    assert not list(tmp_path.iterdir())
