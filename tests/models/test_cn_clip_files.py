"""The optimizer's part of the original trainer's files: training goes on here as it would have there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.cn_clip import names_for
from accel_train.models.cn_clip_files import cn_clip_optimizer_state
from accel_train.models.name_map import to_ours
from tests.models.originals import ChineseCLIP, ModifiedResNet, VisualTransformer, saved

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6}


def spared(name: str) -> bool:
    return "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name


def original_optimizer(model: nn.Module) -> torch.optim.AdamW:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first, second = [p for name, p in named if spared(name)], [p for name, p in named if not spared(name)]
    return torch.optim.AdamW(
        [{"params": first, "weight_decay": 0.0}, {"params": second, "weight_decay": 0.2}], **OPTIONS
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name] if parameter.requires_grad else None
    optimizer.step()


def random_gradients(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def save(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> dict:
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = np.float64(1e-2)  # as the original's schedule leaves it
    content = {"epoch": 1, "step": 2, "name": "x", "state_dict": saved(model), "optimizer": state}
    torch.save(content, path)
    return content


@pytest.fixture(params=["vit", "resnet", "frozen_vision"])
def trained(request, make_config, tmp_path: Path):
    """The original after two steps, its optimizer, our model from its file, and the file."""
    torch.manual_seed(4)
    theirs = ChineseCLIP(ModifiedResNet() if request.param == "resnet" else VisualTransformer())
    theirs.visual.requires_grad_(request.param != "frozen_vision")
    optimizer = original_optimizer(theirs)
    for seed in (1, 2):
        step(theirs, optimizer, random_gradients(theirs, seed))
    save(theirs, optimizer, tmp_path / "cn.pt")
    section = {"type": "chinese_clip", "pretrained": str(tmp_path / "cn.pt"), "batch_norm": "frozen"}
    ours = build_contrastive_model(make_config(section, image_size=64 if request.param == "resnet" else 32))
    return theirs, optimizer, ours, tmp_path / "cn.pt"


def test_the_third_step_is_the_originals(trained) -> None:
    theirs, optimizer, ours, path = trained
    state = cn_clip_optimizer_state(str(path), ours)
    named = dict(ours.named_parameters())
    frozen = {name for name in named if name not in state}
    assert frozen == (
        {n for n in named if n.startswith("vis")} if not theirs.visual.conv1.weight.requires_grad else set()
    )
    table = names_for(ours.config)
    decays = {name for entry in table for name in entry.ours if not spared(entry.theirs)} - frozen
    own = torch.optim.AdamW(
        [
            {"params": [named[n] for n in named if n in state and n not in decays], "weight_decay": 0.0},
            {"params": [named[n] for n in named if n in decays], "weight_decay": 0.2},
        ],
        **OPTIONS,
    )
    for name, moments in state.items():
        assert {key: value.shape for key, value in moments.items()} == {
            "exp_avg": named[name].shape, "exp_avg_sq": named[name].shape, "step": ()
        }  # fmt: skip
        own.state[named[name]] = moments
    gradients = random_gradients(theirs, 3)
    parameters = [entry for entry in table if entry.theirs in gradients]
    for name, value in to_ours(gradients, parameters, "gradients").items():
        named[name].grad = value.reshape(named[name].shape) if name in state else None
    step(theirs, optimizer, gradients)
    own.step()
    for name, value in to_ours(dict(theirs.named_parameters()), parameters, "weights").items():
        torch.testing.assert_close(named[name].reshape(value.shape), value, rtol=0, atol=1e-7)


def test_flash_attention_fuses_the_text_towers_moments(make_config, tmp_path: Path) -> None:
    """Under it the original counts one tensor where BERT has three, so its numbers mean other parameters."""
    theirs = ChineseCLIP(VisualTransformer())
    path = tmp_path / "cn.pt"
    torch.save(saved(theirs), path)
    ours = build_contrastive_model(make_config({"type": "chinese_clip", "pretrained": str(path)}))
    fused = names_for(ours.config, fused_text=True)
    groups = [
        [entry for entry in fused if spared(entry.theirs)],
        [entry for entry in fused if not spared(entry.theirs)],
    ]
    own, state, number = ours.state_dict(), {}, 0
    for entry in [entry for group in groups for entry in group]:
        parts = [own[name].reshape(()) if name == "logit_scale" else own[name] for name in entry.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        value = value.T if entry.transposed else value
        state[number] = {"exp_avg": value, "exp_avg_sq": value**2, "step": 5}
        number += 1
    counts = [range(len(groups[0])), range(len(groups[0]), number)]
    content = {"state": state, "param_groups": [{"params": list(count)} for count in counts]}
    torch.save({"state_dict": saved(theirs), "optimizer": content}, path)
    found = cn_clip_optimizer_state(str(path), ours)
    assert found.keys() == dict(ours.named_parameters()).keys()
    for name, moments in found.items():
        assert torch.equal(moments["exp_avg"], own[name]), name
        assert moments["step"].item() == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("optimizer"), "has no optimizer part"),
        (lambda saved: saved["optimizer"].update(state={}), "saved before the first step"),
        (lambda saved: saved["optimizer"].update(param_groups=[{}]), "has no parameter groups"),
        (lambda saved: saved["optimizer"]["param_groups"][0]["params"].pop(), "which is not how this model divides"),
        (lambda saved: saved["optimizer"]["state"].update({999: {}}), "which is not how this model divides"),
        (lambda saved: saved["optimizer"]["state"][0].pop("step"), "logit_scale is not AdamW's"),
        (lambda saved: saved["optimizer"]["state"][0].update(exp_avg=0.5), "logit_scale don't fit .* they are float"),
        (lambda saved: saved["optimizer"]["state"][1].update(exp_avg=torch.zeros(3)), r"\(3,\) there, \(64,\) here"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, message, make_config, tmp_path: Path) -> None:
    theirs, path = ChineseCLIP(VisualTransformer()), tmp_path / "cn.pt"
    optimizer = original_optimizer(theirs)
    step(theirs, optimizer, random_gradients(theirs, 1))
    content = save(theirs, optimizer, path)
    ours = build_contrastive_model(make_config({"type": "chinese_clip", "pretrained": str(path)}))
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        cn_clip_optimizer_state(str(path), ours)
