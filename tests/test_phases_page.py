"""The configuration of docs/phases.md is one that loads, and its phases train what the page says."""

import re
from pathlib import Path

import torch

from accel_train.config.load import load_config
from accel_train.config.yaml_text import read_yaml, write_yaml
from accel_train.phases import plan_phase_groups, plan_phases
from accel_train.tasks.build import build_task

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


def test_progressive_unfreezing_is_as_the_page_says(tmp_path: Path) -> None:
    page = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "phases.md").read_text(encoding="utf-8"), re.DOTALL)
    assert page is not None
    whole = read_yaml((ROOT / "configs" / "scorer_medium_data.yaml").read_text(encoding="utf-8"))
    whole |= read_yaml(page[1]) | {"num_epochs": 30}
    whole["model"]["clip"] = {"type": "chinese_clip", "size": "vit_l_14"}
    (tmp_path / "phases.yaml").write_text(write_yaml(whole), encoding="utf-8")
    config = load_config(tmp_path / "phases.yaml")
    with torch.device("meta"):
        model = build_task(config).build_model()

    phases = plan_phases(config, steps_per_epoch=24, total_steps=720)
    plans = [plan_phase_groups(model, phases, phase) for phase in phases]
    assert [(phase.start, phase.schedule_start) for phase in phases] == [(0, 0), (240, 0), (480, 480)]
    trained = [{name for group in plan.groups for name in group.param_names} for plan in plans]
    blocks = [{int(found[1]) for name in names if (found := BLOCK.search(name))} for names in trained]
    assert [sorted(numbers) for numbers in blocks] == [list(range(first, 24)) for first in (22, 20, 18)]
    names = {group.name.removesuffix(".no_decay") for group in plans[2].groups if group.tower == "image"}
    assert names == {"image", "image.since_240", "image.since_480"}
