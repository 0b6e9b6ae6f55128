"""`accel-train export`: a run's weights as a Hugging Face folder."""

import shutil
from pathlib import Path

from accel_train.config.load import dump_config
from accel_train.errors import UserError
from accel_train.tools.trained import EXPORT_CONFIG, open_config, open_trained


def export(run: str, output: str, *, checkpoint: str) -> None:
    """Writes aside and renames, so that a failed export leaves nothing. Raises UserError if `output` exists."""
    target = Path(output)
    if target.exists():
        raise UserError(f"{output} exists already, and nothing is overwritten. Choose another folder.")
    trained = open_trained(run, open_config(run, []), checkpoint=checkpoint)
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        trained.task.export(trained.model, str(aside))
        (aside / EXPORT_CONFIG).write_text(dump_config(trained.config), encoding="utf-8")
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"{trained.source} → {target}")
    for file in sorted(target.rglob("*")):
        if file.is_file():
            print(f"  {file.relative_to(target)}  {file.stat().st_size / 2**20:.2f} MiB")
