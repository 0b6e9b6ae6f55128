"""Real runs that are killed, starved and moved: a tiny dataset and model, and a server that starts ranks in an instant."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import Tensor

from accel_train.checkpoint.files import Reader
from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer
from tests.faults.network import TwoHosts

CAPTIONS = ["红色的花", "一只猫", "笑脸", "red flower", "大树", "汽车", "蓝天白云", "三只小猫"]
TIMING = {"samples_per_second", "waiting_for_data", "memory_gib", "save_stall_seconds", "save_seconds"}
TOWER = {"hidden_size": 16, "intermediate_size": 32}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.distributed)
            item.add_marker(pytest.mark.xdist_group("faults"))


def make_dataset(folder: Path, *, num_images: int = 18, seed: int = 0) -> Path:
    """Images whose colour goes with their two captions. 36 training pairs: an epoch has 4 batches of 8, and 4 pairs left."""
    splits = {}
    for split, count in (("train", num_images), ("valid", 8)):
        writer = SplitWriter(folder / split)
        draw = np.random.default_rng([seed, count])
        colours = np.random.default_rng(seed).integers(0, 256, (8, 1, 1, 3))
        for index in range(count):
            pixels = np.clip(colours[index % 8] + draw.integers(-40, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            writer.add_image(f"img{index}", stream.getvalue())
        for index in range(2 * count):
            writer.add_text(f"txt{index}", f"{CAPTIONS[index // 2 % 8]} {index}", [index // 2])
        splits[split] = writer.close()
    save_tokenizer(caption_vocabulary([*CAPTIONS, "0123456789"], 90), folder / "tokenizer")
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "splits": splits}))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture
def write_dataset() -> Callable[..., Path]:
    return make_dataset


def base_config(dataset: Path) -> dict[str, Any]:
    """Everything that a resume must bring back: dropout, augmentation, frozen layers, layer decay, clipping, warmup."""
    return {
        "run_dir": "run",
        "num_epochs": 4,
        "model": {
            "type": "chinese_clip",
            "size": "tiny",
            "config": {
                "vision_config": {**TOWER, "num_hidden_layers": 1},
                "text_config": {**TOWER, "vocab_size": 90, "bos_token_id": 2, "eos_token_id": 3},
            },
        },
        "data": {
            "path": str(dataset),
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 8,
            "image_size": 16,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "num_workers": 0,
            "augmentation": {"crop_scale": [0.5, 1.0], "horizontal_flip": 0.5, "mask_tokens": 0.1},
        },
        "optimizer": {
            "weight_decay": 0.01,
            "max_grad_norm": 2.0,
            "towers": [
                {"name": "image", "lr": 1e-3, "layer_decay": 0.8, "layers": "chinese_clip_image"},
                {"name": "text", "lr": 1e-3, "train_last": 1, "layers": "chinese_clip_text"},
                {"name": "heads", "lr": 2e-3, "max_grad_norm": 1.0, "layers": ["_projection", "^logit_scale$"]},
            ],
        },
        "schedule": {"name": "cosine", "warmup_steps": 4},
        "evaluation": {"evaluate_every": "3 steps", "batch_size": 16},
        "checkpoint": {"save_every": "3 steps", "keep_last": 2},
        "log": {"log_every": "1 step"},
        "compute": {"num_threads": 1},
    }


class ForkServer:
    """The client's end of fork_server.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("fork_server.py")
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.exit_codes: dict[int, int] = {}
        self._started: list[list[int]] = []
        self._news = threading.Condition()
        self._ready = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_until(lambda: self._ready, timeout=120)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            with self._news:
                if "pid" in message:
                    self.exit_codes[message["pid"]] = message["exit_code"]
                elif "started" in message:
                    self._started.append(message["started"])
                else:
                    self._ready = True
                self._news.notify_all()

    def wait_until(self, condition: Callable[[], bool], *, timeout: float) -> None:
        with self._news:
            if not self._news.wait_for(condition, timeout):
                raise TimeoutError(f"nothing happened within {timeout} s")

    def start(self, request: dict[str, Any]) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.wait_until(lambda: bool(self._started), timeout=60)
        return self._started.pop()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self._reader.join(30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    running = ForkServer()
    yield running
    running.close()


@dataclass
class Ranks:
    """The processes of one command."""

    server: ForkServer
    pids: list[int]
    folder: Path

    def wait(self, timeout: float = 90) -> list[int]:
        """Exit codes by rank; negative for a signal. Kills what is still there after the time."""
        try:
            self.server.wait_until(lambda: all(pid in self.server.exit_codes for pid in self.pids), timeout=timeout)
        except TimeoutError:
            self.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.output}") from None
        return [self.server.exit_codes[pid] for pid in self.pids]

    @property
    def running(self) -> bool:
        return not any(pid in self.server.exit_codes for pid in self.pids)

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.pids)):
            if self.pids[rank] not in self.server.exit_codes:
                os.kill(self.pids[rank], number)

    def kill(self) -> list[int]:
        """SIGKILL to every rank; returns the exit codes (0 for one that had ended before)."""
        self.signal(signal.SIGKILL)
        return self.wait(30)

    @property
    def output(self) -> str:
        """What all ranks have printed, in this command and earlier ones in the same folder."""
        return "".join(f"--- {file.name}\n{file.read_text()}" for file in sorted(self.folder.glob("rank*.out")))


@dataclass
class Experiment:
    """One folder with a configuration, and the run that it describes in `run`."""

    server: ForkServer
    folder: Path
    config: dict[str, Any]
    overrides: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def write_config(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config, allow_unicode=True), encoding="utf-8")
        return path

    def start(
        self,
        *arguments: str,
        ranks: int = 1,
        command: str = "train",
        slow_writes: float = 0.0,
        step_seconds: float = 0.0,
        largest_file: int = 0,
        record_samples: Path | None = None,
        poison: dict[str, Any] | None = None,
        built_in: tuple[str, ...] = (),
        odd: str = "",
        hosts: TwoHosts | None = None,
        roll_call_seconds: float = 0.0,
    ) -> Ranks:
        """`accel-train train config.yaml ARGUMENTS`, or another command with these arguments alone.

        `slow_writes` are seconds for each fsync and rename, `largest_file` is a size in bytes beyond which writes fail.
        `poison` is explained in fork_server.py, `built_in` names faults of built_in.py, each for a run,
        `odd` what is odd about the last rank (odd_rank.py).
        `hosts` are those of ranks 0 and 1.
        """
        config = self.write_config()
        for old in self.folder.glob("rank*.out"):
            old.unlink()
        first = [command, str(config), *self.overrides] if command == "train" else [command]
        request = {
            "argv": [*first, *arguments],
            "world_size": ranks,
            "port": free_port(),
            "output": str(self.folder),
            "slow_writes": slow_writes,
            "step_seconds": step_seconds,
            "largest_file": largest_file,
            "record_samples": str(record_samples) if record_samples else None,
            "poison": poison,
            "built_in": list(built_in),
            "odd": odd,
            "hosts": hosts.names if hosts else None,
            "address": hosts.ADDRESSES[0] if hosts else None,
            "roll_call_seconds": roll_call_seconds,
        }
        return Ranks(self.server, self.server.start(request), self.folder)

    def finish(self, *arguments: str, ranks: int = 1, **options: Any) -> str:
        """Runs a command to its end, which must be exit code 0 on every rank; returns what it printed."""
        running = self.start(*arguments, ranks=ranks, **options)
        codes = running.wait()
        assert codes == [0] * ranks, f"exit codes {codes}\n{running.output}"
        return running.output

    def fail(self, *arguments: str, code: int, ranks: int = 1, **options: Any) -> str:
        """Runs a command that must end with this exit code on every rank, without a traceback; returns what it printed."""
        running = self.start(*arguments, ranks=ranks, **options)
        codes = running.wait()
        assert codes == [code] * ranks, f"exit codes {codes}\n{running.output}"
        assert "Traceback" not in running.output, running.output
        return running.output

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl without what depends on the clock."""
        lines = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.metrics() if row["split"] == "train"]

    def step(self) -> int:
        """The last step in metrics.jsonl; 0 while there is none. The last line may be torn."""
        try:
            text = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return 0
        whole = text[: text.rfind("\n") + 1].splitlines()
        return int(json.loads(whole[-1])["step"]) if whole else 0

    def wait_for(self, condition: Callable[[], bool], ranks: Ranks, timeout: float = 60) -> bool:
        """Waits until the condition holds (True) or a rank has ended (False)."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            if condition():
                return True
            if not ranks.running:
                return condition()
            time.sleep(0.002)
        ranks.kill()
        raise AssertionError(f"waited {timeout} s in vain:\n{ranks.output}")

    def steps_on_disk(self) -> list[int]:
        return sorted(int(folder.name[5:]) for folder in self.checkpoints.glob("step_*"))

    def whole_state(self) -> dict[str, Tensor]:
        """Weights, optimizer state and buffers of the latest checkpoint, by kind and name."""
        reader = Reader(self.checkpoints / "latest")
        return {f"{kind} {name}": reader.read(kind, name) for kind in reader.index for name in reader.index[kind]}

    def state(self, which: str = "latest") -> dict[str, Any]:
        return json.loads((self.checkpoints / which / "state.json").read_text(encoding="utf-8"))

    def copy(self, folder: Path) -> "Experiment":
        """The same experiment with the same past in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Experiment(self.server, folder, json.loads(json.dumps(self.config)), list(self.overrides))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def experiment(server: ForkServer, dataset: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Makes an experiment in a folder of its own; arguments are overrides such as "engine=zero1"."""

    def make(*overrides: str, name: str = "experiment") -> Experiment:
        folder = tmp_path / name
        folder.mkdir()
        return Experiment(server, folder, base_config(dataset), list(overrides))

    return make


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts a memory file system over a folder; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount_over(folder: Path, options: str) -> None:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a file system needs root")
        mounted.append(folder)

    yield mount_over
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def never_killed(
    server: ForkServer, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Experiment]:
    """The run of an engine on some ranks from start to end without a fault; trained once, and not to be changed.

    Its sample ids are in `samples.txt`.
    """
    finished: dict[tuple[str, int], Experiment] = {}

    def run(engine: str, ranks: int) -> Experiment:
        if (engine, ranks) not in finished:
            folder = tmp_path_factory.mktemp(f"{engine}_{ranks}")
            reference = Experiment(server, folder, base_config(dataset), [f"engine={engine}"])
            reference.finish(ranks=ranks, record_samples=folder / "samples.txt")
            finished[engine, ranks] = reference
        return finished[engine, ranks]

    return run
