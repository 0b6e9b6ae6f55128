"""`accel-train doctor` as two ranks run it."""

import os
import subprocess
import sys


def test_two_ranks_speak_with_one_voice() -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_USE_DEEPSPEED": "true",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "accel_train", "doctor"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CUDA devices") == 1
    assert "2, which sum up over" in done.stdout
    assert done.stdout.count("drops DeepSpeed") == 1
