"""Keys and passwords are refused in a configuration: it goes into the run's folder, its checkpoints, its log and trackers.

What is found is named by its path alone; the value is never said.
"""

import re
from collections.abc import Iterator
from typing import Any

_PASSWORD_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@]*:[^/\s@]+@")
_SIGNED_URL = re.compile(r"[?&](?:[\w-]*signature|sig|[\w-]*token|[\w-]*key|password)=[^&\s]", re.IGNORECASE)
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|wandb_v\d_\w{16,}"  # Weights & Biases
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|A(?:KIA|SIA)[0-9A-Z]{16}|AIza[\w-]{30,}"  # Amazon, Google
    r"|sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}"  # OpenAI and those that followed it
    r"|xox[abprs]-[\w-]{10,}"  # Slack
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\."  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY)"
)
_NAME = re.compile(
    r"(?:^|_)(?:passw(?:or)?d|passphrase|secret|credentials?|jwt|(?:api|access|secret|private|auth)_?key"
    r"|(?:hf|api|access|auth|bearer|hub|wandb|session)_?token)$",
    re.IGNORECASE,
)
REMEDY = (
    "Keep it out: a configuration is written to run_dir, checkpoints, logs and trackers. Programs that need a key take it "
    "from the environment (WANDB_API_KEY, HF_TOKEN, ...)."
)


def is_secret_name(name: str) -> bool:
    """Whether what has this name is likely to be a secret."""
    return _NAME.search(name) is not None


def looks_secret(text: str) -> str | None:
    """What kind of secret a text holds, in words; None if it holds none that is known."""
    if _PASSWORD_IN_URL.search(text):
        return "a URL with a password"
    if _SIGNED_URL.search(text):
        return "a URL with a key or a signature"
    return "an access key" if _KEY.search(text) else None


def secrets_in(value: Any, path: str = "") -> Iterator[str]:
    """A line for each secret in a mapping that was read, and none of their values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if kind := looks_secret(str(key)):
                yield f"{path or 'the file'}: one of its keys looks like {kind}. {REMEDY}"
            elif is_secret_name(str(key)) and isinstance(inner, str) and inner:
                yield f"{path}{key}: looks like a secret by its name. {REMEDY}"
            else:
                yield from secrets_in(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from secrets_in(inner, f"{path}{index}.")
    elif isinstance(value, str) and (kind := looks_secret(value)):
        yield f"{path.removesuffix('.')}: looks like {kind}. {REMEDY}"


def secrets_in_overrides(overrides: list[str]) -> Iterator[str]:
    """As `secrets_in`, before the overrides are looked at in any other way."""
    for number, override in enumerate(overrides, start=1):
        path, _, text = override.partition("=")
        if looks_secret(path):
            yield f"override number {number}: looks like {looks_secret(path)}. {REMEDY}"
        elif kind := looks_secret(text):
            yield f"{path}: looks like {kind}. {REMEDY}"
        elif is_secret_name(path.rpartition(".")[2].strip()) and text.strip():
            yield f"{path}: looks like a secret by its name. {REMEDY}"
