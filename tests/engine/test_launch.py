"""What a launcher's environment means, and where it contradicts the configuration."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.engine.launch import Launch, ensure_rendezvous, forget_launcher_settings, read_launch
from accel_train.errors import UserError

SETTINGS = ("ACCELERATE_", "FSDP_", "MASTER_")
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """environment(NAME=value, ...): exactly these settings of a launcher, until the test ends."""
    for name in list(os.environ):
        if name.startswith(SETTINGS) or name in PLACE:
            monkeypatch.delenv(name)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture
def config() -> Callable[..., ContrastiveConfig]:
    def make(**changes: Any) -> ContrastiveConfig:
        values: dict[str, Any] = {
            "run_dir": "runs/test",
            "max_steps": 1,
            "model": {"type": "clip", "size": "tiny"},
            "data": {"path": "data", "tokenizer": "vocab.txt", "global_batch_size": 4, "micro_batch_size": 4},
            "optimizer": {"towers": [{"name": "all", "layers": ["."], "lr": 1e-3}]},
        }
        return ContrastiveConfig.model_validate(values | changes)

    return make


Environment = Callable[..., None]
Config = Callable[..., ContrastiveConfig]


def test_nothing_said_is_one_process_alone(environment: Environment, config: Config) -> None:
    wanted = Launch(engine="ddp", offload_optimizer=False, rank=0, local_rank=0, world_size=1)
    assert read_launch(config()) == wanted


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_the_configuration_names_the_engine(engine: str, environment: Environment, config: Config) -> None:
    assert read_launch(config(engine=engine)).engine == engine


@pytest.mark.parametrize(
    ("variables", "engine"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        (FSDP2, "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "false"}, "ddp"),
    ],
)
def test_the_launcher_names_the_engine(
    variables: dict[str, str], engine: str, environment: Environment, config: Config
) -> None:
    environment(**variables)
    assert read_launch(config()).engine == engine
    assert read_launch(config(engine=engine)).engine == engine


def test_the_place_in_the_job(environment: Environment, config: Config) -> None:
    environment(RANK="5", LOCAL_RANK="1", WORLD_SIZE="8")
    launch = read_launch(config())
    assert (launch.rank, launch.local_rank, launch.world_size) == (5, 1, 8)


@pytest.mark.parametrize(
    ("variables", "offload"),
    [({}, False), ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, True)],
)
def test_offload_is_named_by_either(
    variables: dict[str, str], offload: bool, environment: Environment, config: Config
) -> None:
    environment(**DEEPSPEED, **variables)
    assert read_launch(config()).offload_optimizer == offload
    assert read_launch(config(zero={"offload_optimizer": True})).offload_optimizer


@pytest.mark.parametrize(
    ("changes", "variables", "words"),
    [
        ({"engine": "zero2"}, FSDP2, "the configuration says zero2, the launcher says fsdp2"),
        ({"engine": "ddp"}, DEEPSPEED, "the configuration says ddp, the launcher says zero2"),
        ({}, DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ACCELERATE_DEEPSPEED_ZERO_STAGE is '0'"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION is '1'; only FSDP2 is supported"),
        ({}, DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "to 'nvme'; only 'cpu'"),
        ({"engine": "fsdp2", "zero": {"offload_optimizer": True}}, {}, "offload_optimizer is true, but the engine is"),
        ({"zero": {"offload_optimizer": True}}, {}, "but the engine is ddp"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision bf16, the configuration says precision: fp32"),
        ({"precision": "fp16"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision bf16"),
        ({}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "data.micro_batch_size decides"),
        ({}, {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "optimizer.max_grad_norm decides"),
        ({}, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "compute.compile decides"),
        ({}, DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "only the optimizer can be offloaded"),
        ({}, DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "name the stage and the offload"),
    ],
)
def test_contradictions_stop_the_run(
    changes: dict[str, Any], variables: dict[str, str], words: str, environment: Environment, config: Config
) -> None:
    environment(**variables)
    with pytest.raises(UserError) as caught:
        read_launch(config(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "variables"),
    [
        ({}, {"ACCELERATE_MIXED_PRECISION": "no"}),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        ({"precision": "bf16"}, {"ACCELERATE_MIXED_PRECISION": "no"}),
        ({}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "0.0"}),
        ({}, {"ACCELERATE_DYNAMO_BACKEND": "NO"}),
    ],
)
def test_what_does_not_contradict_is_taken(
    changes: dict[str, Any], variables: dict[str, str], environment: Environment, config: Config
) -> None:
    environment(**variables)
    assert read_launch(config(**changes)).world_size == 1


def test_settings_are_forgotten_and_the_place_is_kept(environment: Environment) -> None:
    settings = {**FSDP2, **DEEPSPEED, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    environment(**settings, ACCELERATE_GRADIENT_CLIPPING="1", RANK="1", WORLD_SIZE="2")
    forget_launcher_settings()
    assert not {*settings, "ACCELERATE_GRADIENT_CLIPPING"} & set(os.environ)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


@pytest.fixture
def one_process() -> Launch:
    return Launch(engine="zero2", offload_optimizer=False, rank=0, local_rank=0, world_size=1)


def test_one_process_gets_an_address_of_its_own(
    one_process: Launch, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(MASTER_ADDR="", MASTER_PORT="", RANK="", LOCAL_RANK="", WORLD_SIZE="", LOCAL_WORLD_SIZE="")
    monkeypatch.delenv("MASTER_ADDR")
    ensure_rendezvous(one_process)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert int(os.environ["MASTER_PORT"]) > 0


def test_a_launchers_address_stays(one_process: Launch, environment: Environment) -> None:
    environment(MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    ensure_rendezvous(one_process)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")
    assert "WORLD_SIZE" not in os.environ
