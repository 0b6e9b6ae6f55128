"""Files are read without running what is in them."""

import builtins
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from accel_train.errors import UserError
from accel_train.models.torch_files import read_torch_file, read_weights


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Stated(Call):
    """The same, with a state for the result."""

    def __init__(self, function, arguments, state) -> None:
        self.call = (function, arguments, state)


class Local:
    pass


SCALAR = np.float64(0).__reduce__()[0]
HOSTILE = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
    "builtins.exec": lambda canary: Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
    "getattr": lambda canary: Call(getattr, "text", "upper"),
    "a class of ours": lambda canary: Local(),
    "numpy array": lambda canary: np.zeros(3),
    "numpy object array": lambda canary: np.array([Call(os.system, f"touch {canary}")], dtype=object),
    "numpy object scalar": lambda canary: Call(SCALAR, np.dtype("O"), b"12345678"),
    "numpy structured scalar": lambda canary: np.zeros(1, dtype=[("a", "O")])[0],
    "a scalar without a format": lambda canary: Call(SCALAR, 3, b"12345678"),
    "a scalar of the wrong length": lambda canary: Call(SCALAR, np.dtype("f8"), b"1234"),
    "a big-endian scalar": lambda canary: Call(SCALAR, np.dtype(">f8"), b"12345678"),
    "a function in torch": lambda canary: Call(torch.hub.load, "owner/name", "model"),
    "a nested pickle": lambda canary: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {canary}"))),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(name, zipped, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    content = {"state_dict": {"weight": torch.zeros(2)}, "lr": HOSTILE[name](canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UserError, match=r"model.pretrained: .*model.pt is not read.*a pickle can run any program"
    ) as raised:
        read_torch_file(str(path), "model.pretrained")
    assert "weights_only" not in str(raised.value)
    assert not canary.exists()


def test_the_canary_would_have_sung(tmp_path: Path) -> None:
    """Shows that these files do run programs where they are unpickled."""
    canary = tmp_path / "canary"
    torch.save(HOSTILE["os.system"](canary), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_become_plain_ones(zipped, tmp_path: Path) -> None:
    numbers = [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True), np.float16(2.5), np.uint32(7)]
    content = {"numbers": numbers, "plain": [1, 2.5, "text", None, True], "tensor": torch.arange(3)}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(str(tmp_path / "model.pt"), "here")
    assert found["numbers"] == [0.1, 0.5, -3, True, 2.5, 7]
    assert {type(number) for number in found["numbers"]} == {float, int, bool}
    assert found["plain"] == content["plain"]
    assert torch.equal(found["tensor"], torch.arange(3))


def test_other_readers_do_not_inherit_the_exception(tmp_path: Path) -> None:
    torch.save({"lr": np.float64(0.1)}, tmp_path / "model.pt")
    read_torch_file(str(tmp_path / "model.pt"), "here")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.pt", weights_only=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04garbage", b"PK\x03\x04garbage"])
def test_damaged_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"here: .*model.pt is not read"):
        read_torch_file(str(tmp_path / "model.pt"), "here")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    """OpenAI's own files are such archives: programs with weights."""
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(()))
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3")
    with pytest.raises(UserError, match=r"is not read.*TorchScript"):
        read_torch_file(str(tmp_path / "model.pt"), "here")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here: there is no file"):
        read_torch_file(str(tmp_path / "model.pt"), "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not a mapping"),
        ({"state_dict": 3}, "holds no weights"),
        ({}, "holds no weights"),
        ({"state_dict": {"a": 3}}, r"holds 'a' \(int\) where tensors are expected"),
        ({"epoch": 3, "weight": torch.zeros(2)}, "holds 'epoch'"),
        ({3: torch.zeros(2)}, "holds 3"),
        ({"a": torch.eye(2).to_sparse()}, "holds 'a'"),
        ({"a": torch.zeros(1).expand(2**40)}, "holds 'a'"),  # one number that would become 4 TB when it is copied
        ({"a": torch.zeros(2, device="meta")}, "holds 'a'"),
    ],
)
def test_weights_are_tensors_by_name(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message):
        read_weights(str(tmp_path / "model.pt"), "here")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_the_prefix_of_ddp_is_taken_off(ending: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"model.{ending}", {"module.a": torch.ones(2), "module.b.module.c": torch.zeros(1)}
    if ending == "pt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    found = read_weights(str(path), "here")
    assert found.keys() == {"a", "b.module.c"}
    assert torch.equal(found["a"], torch.ones(2))


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"here: .*model.safetensors can't be read"):
        read_weights(str(tmp_path / "model.safetensors"), "here")
