"""`accel-train embed` for the multimodal tasks: what their frozen encoders give for a split, as `data.features` reads it."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from accel_train.checkpoint.files import sync
from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.encoder_features import EncoderFeatures, write_encoder_features
from accel_train.data.speech import MODALITIES, OneModality
from accel_train.data.spoken_split import open_spoken_split
from accel_train.data.tokenizer_files import find_tokenizer
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.models.multimodal import Senses
from accel_train.preflight import preflight
from accel_train.resume import initial_weights
from accel_train.set_up import build_model
from accel_train.tasks.encoder_features import describe_encoder
from accel_train.tools.embed import Asked, Inputs, compute
from accel_train.tools.feature_blocks import Block, Parts, cut_into_blocks, remove
from accel_train.tools.trained import open_config, open_trained


class Encoders(nn.Module):
    """The encoders of a multimodal model without what comes behind them."""

    def __init__(self, senses: Senses) -> None:
        super().__init__()
        self.senses = senses

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """IMAGE_features and so on, (n, W), of what is in the batch."""
        return {f"{kind}_features": vectors for kind, vectors in self.senses.vectors(batch).items()}


def has_senses(config: RunConfig) -> bool:
    return isinstance(config, MultimodalAlignmentConfig | MultimodalLlmConfig)


def embed_senses(
    source: str, output: str, asked: Asked, *, overrides: list[str], checkpoint: str | None, as_json: bool
) -> dict[str, Any]:
    """Runs every image, recording and caption of a split through its encoder, over all ranks, and writes `output`.

    Returns the summary that it prints. Work lies in OUTPUT.parts until it is whole, so the same command goes on after a
    kill. Raises UserError.
    """
    target = Path(output)
    parts = Parts(target.with_name(f"{target.name}.parts"))
    _check(target, asked)
    config = _live(open_config(source, overrides), asked)
    engine = build_engine(config, for_evaluation=True)
    try:
        preflight(engine, config, None)
        model, found = engine.together(lambda: _open(source, config, checkpoint))
        config = _live(found, asked)
        kinds = tuple(kind for kind in MODALITIES if kind in model.aligner)
        inputs = engine.together(lambda: _inputs(config, kinds, str(asked.split)))
        encoders = {kind: describe_encoder(kind, model, config) for kind in kinds}
        batch_size = config.evaluation.batch_size or config.data.micro_batch_size
        blocks = {kind: cut_into_blocks(kind, len(rows), batch_size) for kind, rows in inputs.datasets.items()}
        about = {"input": inputs.fingerprint, "batch size": batch_size, "encoders": encoders}
        engine.together(lambda: parts.claim(about) if engine.is_main else None)
        engine.hold(Encoders(model), precision=config.precision)
        compute(engine, config, inputs, blocks, parts, 0)
        engine.together(lambda: _finish(engine, target, parts, blocks, inputs, encoders))
    finally:
        engine.close()
    summary: dict[str, Any] = {"output": str(target), "source": source, "input": inputs.name}
    summary |= {f"num_{kind}s": len(dataset) for kind, dataset in inputs.datasets.items()}
    if engine.is_main:
        counts = ", ".join(f"{len(dataset)} of {kind}" for kind, dataset in inputs.datasets.items())
        words = f"{source}\n{inputs.name}: features of frozen encoders, {counts}\n→ {target}"
        print(json.dumps(summary, indent=1, ensure_ascii=False) if as_json else words)
    return summary


def _check(target: Path, asked: Asked) -> None:
    if asked.split is None:
        raise UserError("--images and --texts are for contrastive models; a multimodal one embeds a --split.")
    if asked.max_unreadable:
        raise UserError("--max-unreadable is for --images; every row of a split is needed.")
    if target.name != f"{asked.split}.safetensors":
        raise UserError(
            f"{target}: data.features looks for {asked.split}.safetensors in its folder. Name the output so."
        )
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}. Make it first.")
    if target.exists():
        raise UserError(f"{target} exists already, and nothing is overwritten. Choose another name.")


def _live(config: RunConfig, asked: Asked) -> MultimodalAlignmentConfig | MultimodalLlmConfig:
    """The configuration without stored features, and with the dataset that was asked for."""
    assert isinstance(config, MultimodalAlignmentConfig | MultimodalLlmConfig)
    update: dict[str, str | None] = {"features": None}
    if asked.data_path is not None:
        # Another dataset may have a tokenizer of its own: the model knows the one it was trained with.
        update |= {"path": asked.data_path, "tokenizer": find_tokenizer(config.data.tokenizer, config.data.path)}
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def _open(source: str, config: RunConfig, checkpoint: str | None) -> tuple[Senses, RunConfig]:
    """The model of a run or an export, or the one with which training by a configuration file begins."""
    if not Path(source).is_file():
        trained = open_trained(source, config, checkpoint=checkpoint)
        assert isinstance(trained.model, Senses)
        return trained.model, trained.task.config
    if checkpoint is not None:
        raise UserError(f"--checkpoint: {source} is no run; it has no checkpoints to choose from. Leave it out.")
    task, model = build_model(config)
    if config.initialize_from is not None:
        initial_weights(task, model, config.initialize_from)
    assert isinstance(model, Senses)
    return model, config


def _inputs(config: MultimodalAlignmentConfig | MultimodalLlmConfig, kinds: tuple[str, ...], split: str) -> Inputs:
    datasets: dict[str, Dataset] = {kind: OneModality(config.data, split, kind) for kind in kinds}
    opened = open_spoken_split(config.data.path, split)
    return Inputs(datasets, {}, opened.fingerprint, f"{config.data.path}, split {split}")


def _finish(
    engine: Engine,
    target: Path,
    parts: Parts,
    blocks: dict[str, list[Block]],
    inputs: Inputs,
    encoders: dict[str, dict[str, Any]],
) -> None:
    """Rank 0: joins the parts and gives the file its name."""
    if not engine.is_main:
        return
    vectors = {kind: parts.join(listed)[1] for kind, listed in blocks.items()}
    aside = parts.folder / f"whole{target.suffix}"
    write_encoder_features(aside, EncoderFeatures(vectors, str(inputs.fingerprint), encoders))
    sync(aside)
    aside.replace(target)
    remove(parts.folder)
