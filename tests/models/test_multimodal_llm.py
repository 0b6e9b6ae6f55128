"""The decoder's view: which token is predicted from where, prefixes, and greedy decoding."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from accel_train.config.contrastive import Backbone
from accel_train.errors import UserError
from accel_train.models.multimodal_llm import MultimodalLlm, build_decoder, caption_losses, stretches
from tests.multimodal import llm_config

END, PAD = 3, 0


def build(**model: Any) -> MultimodalLlm:
    config = llm_config("unused", "unused", **model)
    torch.manual_seed(0)
    decoder = build_decoder(config.model.llm, vocab_size=30, end_id=END, pad_id=PAD, attention=None, length=20)
    return MultimodalLlm(config, decoder, (2,), END, PAD).eval()


def batch_of(model: MultimodalLlm, rows: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(4, 30, (rows, 6))
    ids[0, 3], ids[0, 4:] = END, PAD
    return {
        "input_ids": ids,
        "is_target": (ids != PAD).long(),
        "pixel_values": torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8),
        "waveform": torch.randn(rows, 2400) * 0.1,
        "num_audio_samples": torch.tensor([2400, 1500, 600])[:rows],
    }


@pytest.mark.parametrize("reads", ["features", "tokens"])
def test_logits_are_those_of_one_row_after_the_other(reads: str) -> None:
    """Without a batch, without padding, one token more at a time."""
    model = build(projector={"reads": reads, "num_tokens": 3, "hidden": None})
    batch = batch_of(model)
    found = model(batch)["logits"]
    embed = model.llm.get_input_embeddings()
    for row in range(3):
        alone = {name: column[row : row + 1] for name, column in batch.items()}
        prefixes = model._prefixes(alone)
        assert [prefix.shape for prefix in prefixes] == [(1, 3, 32)] * 2
        before = torch.cat([embed(torch.tensor([[2]])), *prefixes], 1)
        for place in range(int(alone["is_target"].sum())):
            seen = torch.cat([before, embed(alone["input_ids"][:, :place])], 1)
            wanted = model.llm(inputs_embeds=seen).logits[0, -1]
            torch.testing.assert_close(found[row, place], wanted, rtol=1e-4, atol=1e-5)


def test_greedy_decoding_is_the_plain_loop() -> None:
    model = build()
    batch = batch_of(model)
    written = model(batch)["written"]
    embed = model.llm.get_input_embeddings()
    for row in range(3):
        alone = {name: column[row : row + 1] for name, column in batch.items()}
        embedded = torch.cat([embed(torch.tensor([[2]])), *model._prefixes(alone)], 1)
        said: list[int] = []
        while len(said) < 6 and END not in said:
            said.append(int(model.llm(inputs_embeds=embedded).logits[0, -1].argmax()))
            embedded = torch.cat([embedded, embed(torch.tensor([[said[-1]]]))], 1)
        assert written[row].tolist() == said + [PAD] * (6 - len(said))


def test_decoding_stops_at_the_end_token() -> None:
    model = build()
    with torch.no_grad():
        model.llm.lm_head.weight.zero_()
        model.llm.lm_head.weight[END] = 100 * torch.randn(32)
    before = torch.randn(8, 2, 32)
    written = model._write(before, 5)
    ends = (written == END).any(1)
    assert ends.any()
    for row in written[ends].tolist():
        assert set(row[row.index(END) + 1 :]) <= {PAD}


def test_training_writes_nothing() -> None:
    model = build().train()
    assert set(model(batch_of(model))) == {"logits"}


def test_stretches_are_adaptive_pooling_over_what_is_real() -> None:
    values = torch.randn(3, 11, 5)
    lengths = torch.tensor([11, 7, 2])
    real = torch.arange(11) < lengths[:, None]
    found = stretches(real, 4) @ values
    for row, length in enumerate(lengths.tolist()):
        wanted = F.adaptive_avg_pool1d(values[row, :length].T[None], 4)[0].T
        torch.testing.assert_close(found[row], wanted)


def test_padding_does_not_matter() -> None:
    model = build()
    batch = batch_of(model)
    outputs = model(batch)["logits"]
    losses = caption_losses(outputs, batch["input_ids"], batch["is_target"])
    assert losses[0, 4:].tolist() == [0, 0]
    changed = batch | {"input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 4:] = 17
    torch.testing.assert_close(
        caption_losses(model(changed)["logits"], changed["input_ids"], batch["is_target"]), losses
    )


def test_nothing_before_a_caption_is_refused() -> None:
    config = llm_config("unused", "unused", image=None, audio=None, aligner=None, projector=None)
    decoder = build_decoder(config.model.llm, vocab_size=30, end_id=END, pad_id=PAD, attention=None, length=20)
    with pytest.raises(UserError, match="nothing comes before a caption"):
        MultimodalLlm(config, decoder, (), END, PAD)


@pytest.mark.parametrize(
    ("section", "length", "message"),
    [
        ({"architecture": "llama", "config": {"vocab_size": 9}}, 9, "model.llm.config.vocab_size: 9 would be ignored"),
        ({"architecture": "llama", "config": {"max_position_embeddings": 8}}, 9, "reads 8 positions at most"),
        ({"architecture": "vit"}, 9, "no causal language model of the type vit"),
        ({"architecture": "llamma"}, 9, "Nearest: llama"),
        ({"pretrained": "nowhere"}, 9, "model.llm.pretrained: nowhere is not a folder"),
    ],
)
def test_refusals(section: dict[str, Any], length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_decoder(Backbone(**section), vocab_size=30, end_id=END, pad_id=PAD, attention=None, length=length)
