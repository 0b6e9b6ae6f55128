"""Phase 2: targets, loss, scores, weights of phase 1, exports, and what the configuration refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from accel_train.config.rules import check_rules
from accel_train.data.captions import caption_tokens
from accel_train.errors import UserError
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.multimodal_alignment import MultimodalAlignmentTask
from accel_train.tasks.multimodal_llm import MultimodalLlmTask
from tests.activations import activation_bytes
from tests.multimodal import DATA, LLAMA, alignment_config, llm_config
from tests.spoken import write_dataset, write_decoder

LORA = {"rank": 2, "alpha": 3, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("spoken") / "data", train=20, valid=8))


def batch_of(task: MultimodalLlmTask, rows: int, split: str = "train") -> dict[str, torch.Tensor]:
    dataset = task.build_dataset(split)
    samples = [dataset.read(row, None) for row in range(rows)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def test_captions_end_and_have_no_start(path: str) -> None:
    config = llm_config(path, "unused")
    tokens = caption_tokens(config.data)
    vocabulary = tokens.tokenizer.vocabulary()
    assert tokens.start_ids == (vocabulary["[CLS]"],)
    assert tokens.end_id == vocabulary["[SEP]"]
    ids, is_target = tokens.encode("red left")
    assert len(ids) == DATA["max_text_length"] - 1
    words = ids[is_target.bool()].tolist()
    assert words[-1] == tokens.end_id and tokens.start_ids[0] not in words
    assert tokens.decode(ids.tolist()) == "red left"
    ids, is_target = tokens.encode("red left " * 20)
    assert is_target.all()


def test_a_tokenizer_without_an_end(path: str, tmp_path: Path) -> None:
    """As LLaMA's: a start token, and nothing behind the text."""
    source = Path(path) / "tokenizer"
    content = json.loads((source / "tokenizer.json").read_text())
    content["post_processor"]["single"] = content["post_processor"]["single"][:2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    data = DATA | {"path": path, "tokenizer": str(tmp_path)}
    with pytest.raises(UserError, match="end_token: missing"):
        caption_tokens(llm_config(path, "unused", changes={"data": data}).data)
    with pytest.raises(UserError, match="'</s>' is not in the vocabulary"):
        caption_tokens(llm_config(path, "unused", changes={"data": data | {"end_token": "</s>"}}).data)
    tokens = caption_tokens(llm_config(path, "unused", changes={"data": data | {"end_token": "[SEP]"}}).data)
    ours = caption_tokens(llm_config(path, "unused").data)
    for text in ("red left", "blue top " * 9):
        assert tokens.encode(text)[0].tolist() == ours.encode(text)[0].tolist()


def test_loss_and_scores_against_plain_loops(path: str) -> None:
    task = MultimodalLlmTask(llm_config(path, "unused", changes={"loss": {"label_smoothing": 0.2}}))
    torch.manual_seed(0)
    model, batch = task.build_model().eval().requires_grad_(False), batch_of(task, 8, "valid")
    outputs = model(batch)
    right = all_tokens = 0
    plain = smoothed = 0.0
    for row in range(8):
        for place in range(int(batch["is_target"][row].sum())):
            likely = outputs["logits"][row, place].log_softmax(0)
            wanted = int(batch["input_ids"][row, place])
            right += int(likely.argmax()) == wanted
            plain -= float(likely[wanted])
            smoothed -= 0.8 * float(likely[wanted]) + 0.2 * float(likely.mean())
            all_tokens += 1
    assert int(task.num_targets(batch)) == all_tokens
    assert float(task.losses(outputs, batch)["caption"]) == pytest.approx(smoothed / all_tokens, rel=1e-5)
    predictions = task.predictions(outputs, batch)
    scores = task.scores(predictions, "valid")
    assert scores["loss"] == pytest.approx(plain / all_tokens, rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx(right / all_tokens)
    assert scores["exact_match"] == 0
    predictions["written"][:2] = predictions["caption"][:2]
    assert task.scores(predictions, "valid")["exact_match"] == 0.25


def test_prediction_rows(path: str) -> None:
    task = MultimodalLlmTask(llm_config(path, "unused"))
    model, batch = task.build_model().eval().requires_grad_(False), batch_of(task, 8, "valid")
    predictions = task.predictions(model(batch), batch)
    predictions["written"] = predictions["caption"].clone()
    backwards = {name: column.flip(0) for name, column in predictions.items()}
    rows = list(task.prediction_rows(backwards, "valid"))
    assert [row["image_id"] for row in rows] == [str(20 + index) for index in range(8)]
    assert rows[0]["audio_id"] == "wav/20.wav"
    assert all(row["written"] == row["caption"] for row in rows)
    assert rows[1]["caption"] == "green left"
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_phase_1_gives_encoders_and_aligner(path: str) -> None:
    torch.manual_seed(1)
    first = MultimodalAlignmentTask(alignment_config(path, "unused")).build_model().state_dict()
    task = MultimodalLlmTask(llm_config(path, "unused", lora=LORA))
    model = task.build_model()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    weights, remark = task.starting_weights(dict(first), model)
    model.load_state_dict(weights)
    assert "start afresh" in remark
    for name, value in model.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith(("llm.", "projector.")) else first)[name]), name
    again, remark = task.starting_weights(dict(model.state_dict()), model)
    assert again.keys() == weights.keys() and remark == ""


def test_an_export_of_phase_1_gives_what_its_run_gives(path: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = MultimodalAlignmentTask(alignment_config(path, "unused"))
    senses = first.build_model()
    first.export(senses, str(tmp_path / "export"))
    task = MultimodalLlmTask(llm_config(path, "unused", lora=LORA))
    model = task.build_model()
    wanted, _ = task.starting_weights(dict(senses.state_dict()), model)
    wanted = {name: value.clone() for name, value in wanted.items()}
    task.load_pretrained(model, str(tmp_path / "export"))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_phase_1_for_one_sense_alone(path: str) -> None:
    first = MultimodalAlignmentTask(alignment_config(path, "unused")).build_model().state_dict()
    task = MultimodalLlmTask(llm_config(path, "unused", audio=None))
    model = task.build_model()
    model.load_state_dict(task.starting_weights(dict(first), model)[0])
    assert not [name for name in model.state_dict() if "audio" in name]
    assert "waveform" not in batch_of(task, 1)


def test_merged_export_is_the_same_model(path: str, tmp_path: Path) -> None:
    task = MultimodalLlmTask(llm_config(path, "unused", lora=LORA))
    torch.manual_seed(0)
    model = task.build_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = str(tmp_path / "export")
    task.export(model, folder)
    config = task.config_of_export(task.config, folder)
    assert config.model.lora is None
    again = MultimodalLlmTask(config)
    other = again.build_model().eval()
    again.load_pretrained(other, folder)
    batch = batch_of(task, 3)
    torch.testing.assert_close(other(batch)["logits"], model(batch)["logits"], rtol=1e-4, atol=1e-5)
    # Into a model with adapters, it goes beneath them.
    third = MultimodalLlmTask(llm_config(path, "unused", lora=LORA))
    adapted = third.build_model().eval()
    third.load_pretrained(adapted, folder)
    torch.testing.assert_close(adapted(batch)["logits"], model(batch)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_adapter_alone(path: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = write_decoder(tmp_path / "base")
    task = MultimodalLlmTask(llm_config(path, "unused", llm={"pretrained": str(base)}, lora=LORA))
    model = task.build_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    task.export_adapter(model, str(tmp_path / "adapter"))
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir())[:2] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    ids = torch.tensor([[2, 9, 8, 7]])
    torch.testing.assert_close(theirs(ids).logits, model.llm(ids).logits)


def test_example_batch_has_the_shapes_of_a_real_one(path: str) -> None:
    task = MultimodalLlmTask(llm_config(path, "unused"))
    real, made = batch_of(task, 3), task.example_batch(3)
    assert set(made) == set(real) - {"sample_id"}
    for name, column in made.items():
        assert (column.shape, column.dtype) == (real[name].shape, real[name].dtype), name


def test_without_values(path: str) -> None:
    """As `plan` builds it."""
    task = MultimodalLlmTask(llm_config(path, "unused", lora=LORA, projector={"reads": "tokens", "num_tokens": 4}))
    with torch.device("meta"):
        model = task.build_model()
    groups = plan_groups(model, task.config.optimizer)
    assert activation_bytes(model, groups, task.config, task.example_batch(2)) > 10_000
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in task.build_model().named_parameters()
    }


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"projector": None}, {}, "model.projector: missing"),
        ({"image": None, "audio": None}, {}, "model.aligner: it would be ignored"),
        ({"lora": LORA | {"dropout": 0.1}}, {"dropout": "per_sample"}, "model.lora.dropout: 0.1 contradicts"),
        ({"llm": {"pretrained": "x", "config": LLAMA}}, {}, "model.llm.config"),
        ({"llm": {}}, {}, "model.llm.pretrained: neither"),
    ],
)
def test_contradictions(model: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    assert message in "\n".join(check_rules(llm_config("x", "x", changes=changes, **model)))


def test_a_sequence_that_is_too_long(path: str) -> None:
    llm = {"architecture": "llama", "config": LLAMA | {"max_position_embeddings": 15}}
    with pytest.raises(UserError, match="reads 15 positions at most; prefix and caption make 16"):
        MultimodalLlmTask(llm_config(path, "unused", llm=llm)).build_model()
