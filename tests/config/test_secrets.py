"""Secrets in a configuration: refused with their path, and never repeated."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.load import load_config
from accel_train.config.schema import RunConfig
from accel_train.config.secrets import is_secret_name, looks_secret, secrets_in
from accel_train.errors import UserError
from tests.fuzzing import FUZZ

Load = Callable[..., RunConfig]
LETTERS = "aB3dE6gH9jK2mN5pQ8sT"
SECRETS = [
    f"hf_{LETTERS}{LETTERS}",
    f"wandb_v1_{LETTERS}",
    f"ghp_{LETTERS}{LETTERS}",
    f"github_pat_{LETTERS}{LETTERS}",
    "AKIA" + "ABCDEFGH12345678",
    f"sk-proj-{LETTERS}{LETTERS}",
    f"eyJ{LETTERS}.eyJ{LETTERS}.x",
    "s3://user:pass1word@bucket/data",
    "https://host/data?X-Amz-Signature=abc1",
    "postgresql://me:pass1word@host/db",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "key", ["initialize_from", "data.path", "run_dir", "model.config.x", "no_such_key", "log.trackers"]
)
def test_a_secret_is_refused_by_its_path(secret: str, key: str, load: Load) -> None:
    value = f"[{secret!r}]" if key == "log.trackers" else repr(secret)
    with pytest.raises(UserError) as caught:
        load(f"{key}={value}", "seed=no")
    assert f"{key}: looks like " in str(caught.value)
    assert secret not in str(caught.value)
    assert "WANDB_API_KEY" in str(caught.value)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_in_the_file_is_not_repeated(secret: str, valid_file: Path) -> None:
    text = valid_file.read_text() + f"wandb:\n  - {{deep: {secret!r}}}\nseeed: 1\n"
    valid_file.write_text(text)
    with pytest.raises(UserError, match=r"wandb\.0\.deep: looks like") as caught:
        load_config(valid_file)
    assert secret not in str(caught.value)
    assert "seeed" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["wandb_api_key", "WANDB_API_KEY", "hf_token", "password", "SLURM_JWT", "aws_secret_access_key"]
)
def test_a_name_gives_a_secret_away(name: str, load: Load) -> None:
    assert is_secret_name(name)
    with pytest.raises(UserError, match=f"{name}: looks like a secret by its name") as caught:
        load(f"model.config.{name}=0123abcd0123abcd")
    assert "0123abcd" not in str(caught.value)


def test_a_secret_in_place_of_a_key(valid_file: Path, load: Load) -> None:
    for change in (f"{SECRETS[0]}=1", SECRETS[0]):
        with pytest.raises(UserError, match="override number 1: looks like an access key") as caught:
            load(change)
        assert SECRETS[0] not in str(caught.value)
    assert SECRETS[0] not in "".join(secrets_in({"a": {SECRETS[0]: 1}}))


@pytest.mark.parametrize(
    "text",
    [
        "runs/sk-baseline-with-a-long-name",
        "runs/task-AKIA",
        "sample:emoji-zh",
        "hf_models/clip",
        "/data/user@host:8080/x",
        "https://host:8080/data@v2",
        r"^text_model\.encoder\.layer\.(\d+)\.",
        "0123456789abcdef0123456789abcdef01234567",
        "models--OFA-Sys--chinese-clip-vit-base-patch16/snapshots/36e679e65c2a2fead755ae21162091293ad37834",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert looks_secret(text) is None


@pytest.mark.parametrize(
    "name", ["pad_token", "pad_token_id", "num_key_value_heads", "mask_tokens", "tokenizer", "key"]
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


@FUZZ
@given(st.text(max_size=30), st.sampled_from(SECRETS[:6]), st.text(max_size=30))
def test_what_stands_around_a_secret_is_no_matter(before: str, secret: str, after: str) -> None:
    assert looks_secret(f"{before} {secret} {after}") is not None
