"""Adapters: where they go, what peft itself makes of what we write, and merging."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from accel_train.config.multimodal_llm import LoraSection
from accel_train.errors import UserError
from accel_train.models.lora import add_lora, merged, save_adapter
from tests.spoken import write_decoder

IDS = torch.tensor([[5, 9, 30, 2], [7, 7, 1, 0]])
SECTION = LoraSection(rank=3, alpha=7, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_decoder(tmp_path / "base")


@pytest.fixture
def adapted(base: Path) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    add_lora(model, SECTION)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def test_adapters_start_as_nothing_and_all_else_may_train(base: Path) -> None:
    plain, model = (AutoModelForCausalLM.from_pretrained(base).eval() for _ in range(2))
    add_lora(model, SECTION)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)
    assert all(parameter.requires_grad for parameter in model.parameters())
    added = {name: tuple(p.shape) for name, p in model.named_parameters() if "lora_" in name}
    assert len(added) == 2 * 2 * 2  # two layers, two modules, two matrices
    assert added["model.layers.1.mlp.down_proj.lora_A.default.weight"] == (3, 48)
    assert added["model.layers.1.mlp.down_proj.lora_B.default.weight"] == (32, 3)


def test_what_is_fixed_stays_fixed(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.requires_grad_(False)
    add_lora(model, SECTION)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_peft_loads_the_adapter_alone(base: Path, adapted: LlamaForCausalLM, tmp_path: Path) -> None:
    save_adapter(adapted.state_dict(), SECTION, str(tmp_path / "adapter"), str(base))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, adapted(IDS).logits)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert not torch.allclose(plain(IDS).logits, adapted(IDS).logits, atol=1e-2)


def test_merged_weights_compute_the_same(base: Path, adapted: LlamaForCausalLM) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    plain.load_state_dict(merged(adapted.state_dict(), SECTION))
    torch.testing.assert_close(plain(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-5)


def test_unknown_modules(base: Path) -> None:
    section = LoraSection(target_modules=["query"])
    with pytest.raises(
        UserError, match=r"target_modules: \['query'\] don't fit; linear layers are .*down_proj.*q_proj"
    ):
        add_lora(AutoModelForCausalLM.from_pretrained(base), section)
