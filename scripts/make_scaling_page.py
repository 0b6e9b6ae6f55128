"""Writes docs/scaling.md and docs/scaling.png: the shipped recipes on 1 to 1,024 GPUs, by the model of `plan --scale`.

    PYTHONPATH=. python scripts/make_scaling_page.py

Weights are not needed: models of the recipes' usual sizes are described by configuration files alone.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import transformers

from accel_train.config.load import load_config
from accel_train.models.sizes import SIZES
from accel_train.tools.plan.more_tables import bottleneck_text, seconds_text
from accel_train.tools.plan.pictures import draw_scaling
from accel_train.tools.plan.run_plan import make_plan
from accel_train.tools.plan.scale import Links, Scaling, given_rates, scaling
from tests.small_data import data_for

ROOT = Path(__file__).parents[1]
LINKS = Links(intra_node=300e9, inter_node=350e9, latency=5e-6, gpus_per_node=8)
FLOPS_PER_SECOND, BYTES_PER_SECOND = 400e12, 2.5e12
SHOWN = (8, 64, 256, 1024)
OWN_TOKENIZER = "data.tokenizer=dataset:tokenizer"


def stand_ins(root: Path) -> dict[str, str]:
    """Folders that describe models of the recipes' usual sizes."""
    size = SIZES["chinese_clip"]["vit_b_16"]
    configurations = {
        "convnext": transformers.ConvNextConfig(),
        "bert": transformers.BertConfig(vocab_size=21128),
        "chinese_clip": transformers.ChineseCLIPConfig(**size),
        "llama": transformers.LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32
        ),
        "vit": transformers.ViTConfig(),
        "whisper": transformers.WhisperConfig(
            encoder_layers=6, encoder_attention_heads=8, decoder_layers=1, decoder_attention_heads=8, d_model=512
        ),
    }
    for name, configuration in configurations.items():
        configuration.save_pretrained(root / name)
        (root / name / "model.safetensors").touch()
    return {name: str(root / name) for name in configurations}


def changes(name: str, folders: dict[str, str]) -> list[str]:
    senses = [f"model.image.pretrained={folders['vit']}", f"model.audio.pretrained={folders['whisper']}"]
    by_recipe = {
        "chinese_clip_muge": [f"model.pretrained={folders['chinese_clip']}", OWN_TOKENIZER],
        "dual_encoder_llrd": [
            f"model.image.pretrained={folders['convnext']}",
            f"model.text.pretrained={folders['bert']}",
            OWN_TOKENIZER,
        ],
        "sequence_classification": [f"model.pretrained={folders['llama']}", OWN_TOKENIZER],
        "multimodal_llm_phase1": [*senses, f"model.text.pretrained={folders['bert']}", OWN_TOKENIZER],
        "multimodal_llm_phase2": [
            *senses,
            OWN_TOKENIZER,
            "data.end_token=null",
            f"model.llm.pretrained={folders['llama']}",
        ],
    }
    return by_recipe.get(name, [f"model.clip.pretrained={folders['chinese_clip']}", OWN_TOKENIZER])


def modelled(path: Path, root: Path) -> tuple[Scaling, str]:
    """The recipe's scaling, and its batch in words. Its dataset's size plays no part, so any data will do."""
    folder = root / path.stem
    folder.mkdir()
    given = [*data_for(path, folder), *changes(path.stem, stand_ins(folder))]
    overrides = list({word.partition("=")[0]: word for word in given}.values())  # ours in the place of theirs
    config = load_config(path, overrides)
    data = config.data
    batch = f"{data.global_batch_size // data.micro_batch_size} x {data.micro_batch_size}"
    few = ["data.global_batch_size=4", "data.micro_batch_size=4"]  # no dataset is as large as some batches
    plan = make_plan(load_config(path, [*overrides, *few]))
    split = replace(
        plan.split,
        micro_batch_size=data.micro_batch_size,
        num_micro_batches=data.global_batch_size // data.micro_batch_size,
    )
    rates = given_rates(FLOPS_PER_SECOND, BYTES_PER_SECOND)
    return scaling(plan.model, plan.groups[0], plan.task, split, rates, LINKS), batch


def main() -> None:
    transformers.logging.set_verbosity_error()
    found: dict[str, Scaling] = {}
    batches: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(ROOT.glob("configs/*.yaml")):
            if path.stem != "quickstart":  # a model for a laptop
                found[path.stem], batches[path.stem] = modelled(path, Path(folder))
                print(path.stem, flush=True)
    page = ROOT / "docs" / "scaling.md"
    text = page.read_text(encoding="utf-8")
    before, marker, _ = text.partition("<!-- written by scripts/make_scaling_page.py -->\n")
    if not marker:
        raise SystemExit(f"{page} has no line that says where the tables begin")
    page.write_text(before + marker + "\n" + tables(found, batches), encoding="utf-8")
    lines = Scaling({name: one.points["ddp"] for name, one in found.items()}, LINKS)
    draw_scaling(lines, "", "the shipped recipes under DDP", str(ROOT / "docs" / "scaling.png"))


def tables(found: dict[str, Scaling], batches: dict[str, str]) -> str:
    lines = [
        "![Efficiency of the shipped recipes under DDP](scaling.png)\n",
        "### DDP\n",
        f"| recipe | on each GPU | step on 1 GPU | {' | '.join(f'{number:,}' for number in SHOWN)} | first bottleneck |",
        f"|---|---|---|{'---|' * len(SHOWN)}---|",
    ]
    for name, one in found.items():
        points = {point.num_gpus: point for point in one.points["ddp"]}
        cells = [f"{points[number].efficiency:.0%}" for number in SHOWN]
        first = seconds_text(points[1].seconds)
        lines.append(f"| {name} | {batches[name]} | {first} | {' | '.join(cells)} | {bottleneck_text(one, 'ddp')} |")
    lines += ["\n### Every engine, on 256 GPUs, and its first bottleneck\n"]
    engines = list(next(iter(found.values())).points)
    lines += [f"| recipe | {' | '.join(engines)} |", f"|---|{'---|' * len(engines)}"]
    for name, one in found.items():
        cells = []
        for engine in engines:
            share = next(point.efficiency for point in one.points[engine] if point.num_gpus == 256)
            cells.append(f"{share:.0%}; {bottleneck_text(one, engine)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
