from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, ChineseCLIPModel, CLIPModel

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from tests.models.originals import Bert, ChineseCLIP, ModifiedResNet, OpenCLIP, QuickGELU, VisualTransformer, saved

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
TEXT = SIZES | {"max_position_embeddings": 20}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "patch_size": 8,
}
CONFIG = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 32}
RESNET = {"text_config": TEXT, "vision_config": {"width": 8, "depths": [1, 2, 1, 1]}, "projection_dim": 32}


def section(**changes):
    return {"type": "chinese_clip", "size": "tiny", "config": CONFIG, "batch_norm": "frozen"} | changes


def tower(model, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(f"{name}_model.")}


def build(make_config, seed: int = 0, image_size: int = 32, **changes):
    torch.manual_seed(seed)
    return build_contrastive_model(make_config(section(**changes), image_size=image_size))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder or file of each kind."""
    torch.manual_seed(1)
    bert = BertConfig(**TEXT)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert_mlm")
    torch.save(BertForMaskedLM(bert).state_dict(), tmp_path / "bert_mlm.bin")
    torch.save(Bert().state_dict(), tmp_path / "bert_bare.pt")
    torch.save(saved(ChineseCLIP(VisualTransformer())), tmp_path / "cn_clip.pt")
    torch.save(saved(ChineseCLIP(ModifiedResNet())), tmp_path / "cn_clip_resnet.pt")
    torch.save(OpenCLIP(QuickGELU()).state_dict(), tmp_path / "clip.pt")
    return tmp_path


@pytest.mark.parametrize(
    "source", ["bert", "bert_mlm", "bert_mlm.bin", "bert_bare.pt", "cn_clip.pt", "cn_clip_resnet.pt"]
)
def test_a_text_tower_from_each_source(source, files: Path, make_config) -> None:
    random = build(make_config)
    model = build(make_config, text_pretrained=str(files / source))
    names = tower(model, "text").keys()
    if source.startswith("bert_mlm.bin"):
        saved_weights = torch.load(files / source)
        query = saved_weights["bert.encoder.layer.1.attention.self.query.weight"]
    elif "." not in source:
        backbone = BertModel.from_pretrained(files / source, add_pooling_layer=False)
        query = backbone.encoder.layer[1].attention.self.query.weight
        found = backbone.state_dict()
        assert {name.removeprefix("text_model.") for name in names} == found.keys()
        assert all(torch.equal(model.state_dict()[f"text_model.{name}"], value) for name, value in found.items())
    else:
        weights = torch.load(files / source)
        (key,) = [name for name in weights if name.endswith("encoder.layer.1.attention.self.query.weight")]
        query = weights[key]
    assert torch.equal(model.text_model.encoder.layer[1].attention.self.query.weight, query)
    assert all(torch.equal(tower(model, "vision")[name], value) for name, value in tower(random, "vision").items())
    assert torch.equal(model.logit_scale, random.logit_scale)
    has_projection = source.startswith("cn_clip")
    assert torch.equal(model.text_projection.weight, random.text_projection.weight) != has_projection
    assert model.notes == ()


def test_norms_under_their_oldest_names(files: Path, make_config) -> None:
    weights = torch.load(files / "bert_mlm.bin")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in weights.items()
    }
    torch.save(old, files / "old.bin")
    new, old = (build(make_config, text_pretrained=str(files / name)) for name in ("bert_mlm.bin", "old.bin"))
    assert all(torch.equal(old.state_dict()[name], value) for name, value in new.state_dict().items())


@pytest.mark.parametrize("source", ["cn_clip.pt", "clip.pt"])
def test_an_image_tower_brings_projection_and_temperature(source, files: Path, make_config) -> None:
    random = build(make_config)
    model = build(make_config, vision_pretrained=str(files / source))
    weights = {name.removeprefix("module."): value for name, value in torch.load(files / source).items()}
    assert torch.equal(model.visual_projection.weight, weights["visual.proj"].T)
    assert torch.equal(model.vision_model.embeddings.patch_embedding.weight, weights["visual.conv1.weight"])
    assert model.logit_scale.item() == weights["logit_scale"].item() == 2.5
    assert all(torch.equal(tower(model, "text")[name], value) for name, value in tower(random, "text").items())
    given = build(make_config, vision_pretrained=str(files / source), temperature=0.5)
    assert given.logit_scale.item() == pytest.approx(torch.tensor(2.0).log().item())


def test_both_towers_and_another_image_size(files: Path, make_config) -> None:
    sources = {"vision_pretrained": str(files / "clip.pt"), "text_pretrained": str(files / "bert")}
    model = build(make_config, image_size=48, **sources)
    assert model.notes == (
        f"position embeddings of {files / 'clip.pt'} were resized from 4 x 4 to 6 x 6 patches (bicubic, corners aligned)",
    )
    with torch.device("meta"):
        build(make_config, image_size=48, **sources)


def test_a_resnet_tower(files: Path, make_config) -> None:
    changes = {"size": "tiny_resnet", "config": RESNET, "vision_pretrained": str(files / "cn_clip_resnet.pt")}
    model = build(make_config, image_size=64, **changes)
    weights = torch.load(files / "cn_clip_resnet.pt")
    assert torch.equal(model.vision_model.pool.out_proj.weight, weights["module.visual.attnpool.c_proj.weight"])
    assert model.logit_scale.item() == 2.5


def test_towers_of_clip_folders(files: Path, make_config) -> None:
    source = build(make_config, seed=5, type="clip", config=CONFIG)
    CLIPModel(source.config).save_pretrained(files / "clip")
    ChineseCLIPModel(build(make_config, seed=6).config).save_pretrained(files / "chinese_clip")
    model = build(make_config, vision_pretrained=str(files / "clip"), text_pretrained=str(files / "chinese_clip"))
    plain = CLIPModel.from_pretrained(files / "clip"), ChineseCLIPModel.from_pretrained(files / "chinese_clip")
    for part, name in zip(plain, ("vision", "text"), strict=True):
        found = tower(part, name)
        for key, value in tower(model, name).items():
            if "word_embeddings" not in key:  # transformers zeroes the padding token's row
                assert torch.equal(found[key], value), key
    assert torch.equal(model.visual_projection.weight, plain[0].visual_projection.weight)
    assert torch.equal(model.text_projection.weight, plain[1].text_projection.weight)
    causal = build(make_config, type="clip", text_pretrained=str(files / "clip"))
    assert all(torch.equal(tower(plain[0], "text")[name], value) for name, value in tower(causal, "text").items())


def test_a_causal_text_tower_from_a_file(make_config, files: Path) -> None:
    text = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3, "max_position_embeddings": 12}
    changes = {
        "type": "clip",
        "config": CONFIG | {"text_config": TEXT | text},
        "text_pretrained": str(files / "clip.pt"),
    }
    model = build(make_config, **changes)
    weights = torch.load(files / "clip.pt")
    assert torch.equal(model.text_projection.weight, weights["text_projection"].T)
    assert torch.equal(model.text_model.embeddings.token_embedding.weight, weights["token_embedding.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_pretrained": "clip.pt"}, r"model.text_pretrained: .*missing: bert"),
        ({"vision_pretrained": "bert_mlm.bin"}, r"model.vision_pretrained: .*missing: visual"),
        ({"vision_pretrained": "cn_clip_resnet.pt"}, r"missing: visual.*unexpected: visual"),
        ({"vision_pretrained": "bert"}, r"vision_pretrained: .*holds a bert model; this tower is read from chinese_clip"),
        ({"text_pretrained": "bert", "config": CONFIG | {"text_config": TEXT | {"vocab_size": 99}}},
         r"word_embeddings.weight is \(100, 128\) there and \(99, 128\) here"),
        ({"text_pretrained": "bert", "config": CONFIG | {"text_config": TEXT | {"num_attention_heads": 4}}},
         r"was trained with num_attention_heads 2, but this model has 4"),
        ({"vision_pretrained": "clip.pt", "config": CONFIG | {"projection_dim": 16}},
         r"visual_projection.weight is \(32, 64\) there and \(16, 64\) here"),
        ({"text_pretrained": "absent"}, "is not a folder"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, message, files: Path, make_config) -> None:
    changes = {name: str(files / value) if name.endswith("pretrained") else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        build(make_config, **changes)
