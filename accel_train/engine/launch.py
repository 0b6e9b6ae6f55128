"""What the launcher asked for, read from the environment, and whether it agrees with the configuration."""

import os
import socket
from dataclasses import dataclass

from accel_train.config.schema import RunConfig
from accel_train.errors import UserError


@dataclass(frozen=True, slots=True)
class Launch:
    """One rank's place in the job and the engine it is to run."""

    engine: str
    offload_optimizer: bool
    rank: int
    local_rank: int
    world_size: int


def read_launch(config: RunConfig) -> Launch:
    """Joins the configuration with the environment of the launcher. Raises UserError where they differ."""
    asked = _engine_of_launcher()
    if asked is not None and config.engine is not None and asked != config.engine:
        raise UserError(
            f"engine: the configuration says {config.engine}, the launcher says {asked} (ACCELERATE_USE_DEEPSPEED, "
            "ACCELERATE_USE_FSDP). Launch with the file of the same name in launch/, or leave `engine` out of the "
            "configuration.",
            code="AT200",
        )
    engine = asked or config.engine or "ddp"
    offload = config.zero.offload_optimizer
    if engine.startswith("zero"):
        device = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        offload = offload or device == "cpu"
        if device not in ("none", "cpu"):
            raise UserError(
                f"The launcher offloads the optimizer to {device!r}; only 'cpu' and 'none' are supported.", code="AT201"
            )
    elif offload:
        raise UserError(
            f"zero.offload_optimizer is true, but the engine is {engine}. Set engine to zero1, zero2 or zero3.",
            code="AT201",
        )
    _refuse_contradictions(config)
    return place_of_launch(engine, offload_optimizer=offload)


def place_of_launch(engine: str, *, offload_optimizer: bool) -> Launch:
    """This process's place, as every launcher says it in the environment."""
    return Launch(
        engine=engine,
        offload_optimizer=offload_optimizer,
        rank=int(os.environ.get("RANK", 0)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def _engine_of_launcher() -> str | None:
    if _is_true("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("1", "2", "3"):
            raise UserError(
                f"ACCELERATE_DEEPSPEED_ZERO_STAGE is {stage!r}; the rule is 1, 2 or 3. For stage 0 use engine ddp.",
                code="AT201",
            )
        return f"zero{stage}"
    if _is_true("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise UserError(
                f"FSDP_VERSION is {version!r}; only FSDP2 is supported. Set fsdp_version: 2 in the launch file.",
                code="AT201",
            )
        return "fsdp2"
    return None


def _refuse_contradictions(config: RunConfig) -> None:
    """Settings of `accelerate launch` that would be ignored here stop the run instead."""
    precision = {"no": "fp32"}.get(found := os.environ.get("ACCELERATE_MIXED_PRECISION", ""), found)
    if found and found != "no" and precision != config.precision:
        raise UserError(
            f"The launcher says mixed_precision {found}, the configuration says precision: {config.precision}. "
            "Leave it out of the launch file: `precision` decides.",
            code="AT201",
        )
    for name, allowed, remedy in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1", "auto"), "data.micro_batch_size decides how a batch is split"),
        ("ACCELERATE_GRADIENT_CLIPPING", ("none", "auto", "0", "0.0"), "optimizer.max_grad_norm decides"),
        ("ACCELERATE_DYNAMO_BACKEND", ("no",), "compute.compile decides"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", ("none",), "only the optimizer can be offloaded"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", ("none", ""), "name the stage and the offload in the launch file instead"),
    ):
        value = os.environ.get(name, allowed[0])
        if value.lower() not in allowed:
            raise UserError(
                f"The launcher sets {name}={value}, which would be ignored: {remedy}. Take it out of the launch file.",
                code="AT201",
            )


def name_accelerator(*, on_cuda: bool) -> None:
    """Tells DeepSpeed that there is no GPU: it is imported by others as well, and guesses with a warning unless told."""
    if not on_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"


def forget_launcher_settings() -> None:
    """Takes the launcher's settings out of the environment once they are read: Accelerate would apply them by itself."""
    prefixes = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_GRADIENT_", "FSDP_")
    names = (
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_CONFIG_DS_FIELDS",
    )
    for name in list(os.environ):
        if name.startswith(prefixes) or name in names:
            del os.environ[name]


def ensure_rendezvous(launch: Launch) -> None:
    """One process under ZeRO or FSDP2 needs a process group of one; give it an address of its own."""
    if "MASTER_ADDR" in os.environ or launch.world_size > 1:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1"
    )


def threads_per_rank(config: RunConfig, local_ranks: int) -> int | None:
    """Of torch on a CPU host that so many ranks share. None: as the environment says, or torch by itself."""
    if config.compute.num_threads is not None:
        return config.compute.num_threads
    if local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        return max(1, (os.cpu_count() or 1) // local_ranks)
    return None
