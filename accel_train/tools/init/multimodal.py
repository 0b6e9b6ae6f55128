"""Pages for both phases of a multimodal language model: `multimodal_alignment`, then `multimodal_llm`."""

from typing import Any

from accel_train.tools.init import scratch
from accel_train.tools.init.asked import (
    WHY_EPOCHS,
    Asked,
    batches,
    data_begins,
    evaluation,
    head,
    schedule,
    text_input,
    top,
)
from accel_train.tools.init.choices import Length, epochs, length
from accel_train.tools.init.classification import LLAMA_LIKE
from accel_train.tools.init.contrastive import image_lines, optimizer
from accel_train.tools.init.page import Page, number, scalar

BASE_LR = 1e-4
WARMUP_STEPS = 500
WHISPER_SECONDS = 30
PRETRAINED_AT_ONCE, SCRATCH_AT_ONCE = 16, 128
FROZEN = "pretrained, and frozen: the new parts come to it"


def alignment_page(asked: Asked) -> Page:
    """Phase 1: images, speech and captions in one space."""
    page, num = Page(), asked.seen.num_train
    parts = ("image", "audio", "text")
    missing = [part for part in parts if part not in asked.weights]
    planned = length(num, 64 if num >= 64 * 10 else 32, epochs(num, few=25, usual=3 if not missing else 20))
    remarks = []
    if missing:
        remarks = [
            f"Random weights: {', '.join(missing)}. A pretrained encoder does far better: --weights PART=FOLDER."
        ]
    head(page, asked, "Phase 1 of a multimodal language model: images, speech and captions in one space", remarks)
    top(page, asked, planned, WHY_EPOCHS, precision=not missing)
    page.section("model")
    _encoder_sections(page, asked, parts)
    page.line(f"aligner: {{dim: {128 if missing else 512}}}", "width of the shared space", depth=1)
    _data(page, asked, planned, "each sample is compared with all others of the batch")
    optimizer(page, weight_decay=0.05 if missing else 0.01, max_grad_norm=1.0)
    for part in parts:
        lr, why = (1e-3, "random weights bear a high rate") if part in missing else (0, FROZEN)
        page.line(f"- {{name: {part}, lr: {number(lr)}, layers: ['^{part}_encoder\\.']}}", why, depth=2)
    new = 1e-3 if missing else BASE_LR
    page.line(f"- {{name: aligner, lr: {number(new)}, layers: ['^aligner\\.']}}", "new", depth=2)
    page.line(f"- {{name: temperature, lr: {number(new)}, layers: ['^logit_scale$']}}", depth=2)
    _ending(page, asked, planned, "mean_recall", "the mean over all six directions")
    return page


def llm_page(asked: Asked) -> Page:
    """Phase 2: a decoder captions what the encoders see and hear."""
    page, num = Page(), asked.seen.num_train
    aligned, llm = asked.weights.get("aligned"), asked.weights.get("llm")
    planned = length(num, 16 if num >= 16 * 20 else 8, epochs(num, few=20, usual=3 if llm else 20))
    remarks = []
    if aligned is None:
        remarks += ["No phase 1: encoders and aligner learn here too. Better train it first, by `accel-train init"]
        remarks += ["multimodal_alignment`, and give its run as --weights aligned=RUN."]
    if llm is None:
        remarks += ["The decoder has random weights. A pretrained one does far better: --weights llm=FOLDER."]
    head(page, asked, "Phase 2 of a multimodal language model: it captions what it sees and hears", remarks)
    top(page, asked, planned, WHY_EPOCHS, precision=llm is not None)
    if aligned is not None:
        page.line(f"initialize_from: {scalar(aligned.source)}", "encoders and aligner of phase 1")
    page.section("model")
    if aligned is not None and aligned.run is not None:
        before = aligned.run.model_dump(exclude_defaults=True)["model"]
        aligner = aligned.run.model_dump()["model"]["aligner"]
        page.values({part: before[part] for part in ("image", "audio")} | {"aligner": aligner}, depth=1)
    else:
        _encoder_sections(page, asked, ("image", "audio"))
        page.line("aligner: {dim: 128}", "width of the shared space", depth=1)
    page.line("projector: {num_tokens: 4}", "each modality becomes so many input tokens of the decoder", depth=1)
    _decoder(page, asked)
    _data(page, asked, planned, "captions are learnt token by token, so few samples make a batch")
    _llm_towers(page, asked)
    _ending(page, asked, planned, "token_accuracy", "moves long before whole captions are right")
    return page


def _decoder(page: Page, asked: Asked) -> None:
    llm = asked.weights.get("llm")
    if llm is None:
        page.line("llm:", depth=1)
        page.line("architecture: llama", depth=2)
        config = scratch.transformer(asked.seen.num_train) | {"attention_dropout": 0.1}
        page.line("config:", depth=2)
        page.values(config, depth=3)
        return
    page.line(f"llm: {{pretrained: {scalar(llm.source)}}}", depth=1)
    why = "adapters, so that the decoder forgets nothing; pip install 'accel_train[lora]'"
    page.line("lora: {rank: 16, alpha: 32, target_modules: [q_proj, v_proj]}", why, depth=1)


def _llm_towers(page: Page, asked: Asked) -> None:
    llm = asked.weights.get("llm")
    optimizer(page, weight_decay=0.01 if llm else 0.05, max_grad_norm=1.0)
    if "aligned" in asked.weights:
        patterns = r"['^image_encoder\.', '^audio_encoder\.', '^aligner\.']"
        page.line(f"- {{name: aligned, lr: 0, layers: {patterns}}}", "frozen: phase 1 has trained it", depth=2)
    else:
        for part in ("image", "audio"):
            lr, why = (0, FROZEN) if part in asked.weights else (1e-3, "random weights bear a high rate")
            page.line(f"- {{name: {part}, lr: {number(lr)}, layers: ['^{part}_encoder\\.']}}", why, depth=2)
        page.line(r"- {name: aligner, lr: 1.0e-3, layers: ['^aligner\.']}", depth=2)
    projector = 5 * BASE_LR if llm else 2e-3
    page.line(
        f"- {{name: projector, lr: {number(projector)}, layers: ['^projector\\.']}}", "new, so it learns fast", depth=2
    )
    if llm is None:
        page.line("- {name: llm, lr: 1.0e-3, layers: llama}", "random weights bear a high rate", depth=2)
        return
    why = "half of the base rate of 1e-4: they sit in a trained model"
    page.line(f"- {{name: lora, lr: {number(BASE_LR / 2)}, layers: ['\\.lora_[AB]\\.']}}", why, depth=2)
    layers = "llama" if llm.model_type in LLAMA_LIKE else r"['^llm\.']"
    page.line(f"- {{name: llm, lr: 0, layers: {layers}}}", "frozen but for its adapters", depth=2)


def _encoder_sections(page: Page, asked: Asked, parts: tuple[str, ...]) -> None:
    num, seen = asked.seen.num_train, asked.seen
    own: dict[str, dict[str, Any]] = {
        "image": {"architecture": "convnext", "config": scratch.convnext(num)},
        "audio": {"type": "log_mel_conv", "num_mels": 48 if (seen.audio_rate or 0) < 16_000 else 64, "width": 128},
        "text": {"architecture": "bert", "config": scratch.bert(num, asked.vocab_size)},
    }
    for part in parts:
        if part in asked.weights:
            kind = "type: transformers, " if part == "audio" else ""
            page.line(f"{part}: {{{kind}pretrained: {scalar(asked.weights[part].source)}}}", depth=1)
        else:
            page.line(f"{part}:", "random weights, of a size that so much data can fill", depth=1)
            page.values(own[part], depth=2)


def _data(page: Page, asked: Asked, planned: Length, why_batch: str) -> None:
    seen = asked.seen
    audio = asked.weights.get("audio")
    aligned = asked.weights.get("aligned")
    data_begins(page, asked)
    text_input(page, asked)
    image_lines(page, asked, aligned or asked.weights.get("image"), is_own="image" not in asked.weights)
    if aligned is not None and aligned.run is not None:
        before = aligned.run.data.model_dump()
        rate_of, seconds, why = before["sample_rate"], before["max_audio_seconds"], "as in phase 1"
    elif audio is not None:
        rate_of = audio.preprocessing().get("sampling_rate", 16_000)
        is_whisper = audio.model_type == "whisper"
        seconds, why = WHISPER_SECONDS if is_whisper else _seconds(asked), "what the encoder was trained with"
    else:
        rate_of, seconds, why = seen.audio_rate, _seconds(asked), "that of the recordings"
    page.line(f"sample_rate: {rate_of}", why, depth=1)
    page.line(f"max_audio_seconds: {seconds:g}", f"99 of 100 recordings have at most {seen.audio_seconds:.2f}", depth=1)
    batches(page, planned, PRETRAINED_AT_ONCE if asked.weights else SCRATCH_AT_ONCE, why_batch)


def _seconds(asked: Asked) -> float:
    """Rounded up to a tenth of a second."""
    return int((asked.seen.audio_seconds or 1) * 10 + 1) / 10


def _ending(page: Page, asked: Asked, planned: Length, score: str, why: str) -> None:
    ratio = 0.1 if planned.total_steps < 10 * WARMUP_STEPS else round(WARMUP_STEPS / planned.total_steps, 3)
    schedule(page, ratio, "new parts between trained ones need a slow start")
    evaluation(page, asked, planned, score, why, patience=None)
