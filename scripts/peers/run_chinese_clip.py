"""The original Chinese-CLIP trainer on a CPU: run_chinese_clip.py TIMES OPTIONS

Its code is on PYTHONPATH and runs as it is. It knows CUDA alone, so what names CUDA or NCCL is answered by the CPU and gloo.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from on_cpu import declare_operators, wrap_without_devices
from timed import time_steps
from torch import nn


def answer_for_cuda() -> None:
    torch.cuda.set_device = lambda device: None
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    begin = dist.init_process_group

    @functools.wraps(begin)
    def with_gloo(backend: str, **options: Any) -> None:
        begin("gloo", **options)

    dist.init_process_group = with_gloo


declare_operators()
wrap_without_devices()
answer_for_cuda()
time_steps(sys.argv[1])
sys.argv[1:] = json.loads(Path(sys.argv[2]).read_text())
from cn_clip.training.main import main  # noqa: E402

main()
