"""open_clip's trainer: run_open_clip.py TIMES MODEL-CONFIG OPTIONS STEPS"""

import json
import sys
from pathlib import Path

import torch
from timed import time_steps

if not torch.cuda.is_available():
    from on_cpu import declare_operators, wrap_without_devices

    declare_operators()
    wrap_without_devices()
time_steps(sys.argv[1], last_step=int(sys.argv[4]))

from open_clip.factory import add_model_config  # noqa: E402
from open_clip_train.main import main  # noqa: E402

add_model_config(sys.argv[2])
main(json.loads(Path(sys.argv[3]).read_text()))
