"""The folder that a run is set up in aside is nobody else's concern."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel_train.config.schema import RunConfig
from accel_train.errors import NotNow
from accel_train.tools.verify import aside


def test_what_is_refused_names_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: RunConfig, *_: Any, **__: Any) -> None:
        assert Path(config.run_dir).is_dir() and config.run_dir != "runs/mine"
        raise NotNow(f"{config.run_dir} can't be resumed with another configuration.", code="AT300")

    monkeypatch.setattr(aside, "set_up", refuse)
    config = RunConfig.model_construct(run_dir="runs/mine", log=RunConfig.model_fields["log"].get_default())
    engine: Any = SimpleNamespace(rank=0)
    with pytest.raises(NotNow, match=r"^runs/mine can't be resumed") as refused, aside.run_aside(config, engine, None):
        pass
    assert refused.value.code == "AT300"
