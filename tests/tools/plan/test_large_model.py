"""A plan of Chinese-CLIP ViT-H/14 stays small: 958 million weights are never there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import ROOT, clean_environment

MOST_BYTES = 2e9
PROGRAM = """
import resource, sys
from accel_train.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_vit_h_in_two_gigabytes(tmp_path: Path) -> None:
    """docs/plan.md says how long it takes."""
    source = (ROOT / "configs" / "small" / "chinese_clip.yaml").read_text(encoding="utf-8")
    before, _, rest = source.partition("  size: tiny\n")
    _, _, after = rest.partition("\ndata:\n")
    config = tmp_path / "vit_h.yaml"
    config.write_text(f"{before}  size: vit_h_14\n\ndata:\n{after}".replace("image_size: 48", "image_size: 224"))
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, "plan", str(config), "precision=bf16", "data.micro_batch_size=32"],
        env=clean_environment() | {"XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Memory of one rank" in finished.stdout
    assert float(finished.stderr.split()[-1]) < MOST_BYTES
