"""The fused kernels: numbers by Triton's interpreter, and that they compile for the devices that they are for."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.losses import contrastive, fused
from accel_train.losses.contrastive import info_nce, info_nce_in_words
from tests.losses.interpreted import CASES, Case
from tests.short_runs import ROOT

CPU = torch.device("cpu")
SHARED_MEMORY = {80: 163 * 2**10, 90: 227 * 2**10}
"""Bytes that one program may have on an A100 and on an H100, by CUDA's programming guide."""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """Loss and gradients of every case."""
    pytest.importorskip("triton", reason="Triton runs the kernels: pip install 'accel_train[test]' on Linux")
    path = tmp_path_factory.mktemp("fused") / "found.pt"
    command = [sys.executable, "-m", "tests.losses.interpreted", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def naive(case: Case) -> list[Tensor]:
    """In float64, with the whole matrix."""
    tensors = [tensor.detach().double().requires_grad_() for tensor in case.features()]
    image, text, scale = tensors
    logits, target = scale * image @ text.T, torch.eye(case.rows, dtype=torch.bool)
    for key in case.keys() or ():
        target = target | (key[:, None] == key)
    target = (1 - case.smoothing) * target / target.sum(1, keepdim=True) + case.smoothing / case.rows
    rows = slice(*case.mine)
    sides = (F.cross_entropy(one[rows], target[rows], reduction="sum") for one in (logits, logits.T))
    loss = sum(sides) / (2 * case.rows)
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_float64(name: str, interpreted: dict[str, list[Tensor]]) -> None:
    case, expected = CASES[name], naive(CASES[name])
    assert {found.dtype for found in interpreted[name]} == {torch.float32}
    torch.testing.assert_close(interpreted[name][0].double(), expected[0], rtol=1e-6, atol=2e-7)
    # Of a small loss the gradient is what is left of a softmax of 1 less a target of 1.
    rounding = 3e-7 * case.scale / case.rows
    for found, wanted in zip(interpreted[name][1:], expected[1:], strict=True):
        torch.testing.assert_close(
            found.double(), wanted, rtol=1e-6, atol=max(3e-6 * wanted.abs().max().item(), rounding)
        )


@pytest.mark.slow
def test_they_are_as_exact_as_the_chunks(interpreted: dict[str, list[Tensor]]) -> None:
    """Over all cases together their distance to float64 is at most half as large again as that of the chunks."""
    distances = torch.zeros(2, 4, dtype=torch.float64)
    for name, case in CASES.items():
        tensors, keys = case.features(), case.keys() or (None, None)
        loss = info_nce(
            *tensors,
            image_key=keys[0],
            text_key=keys[1],
            positives="shared" if case.keys() else "own",
            label_smoothing=case.smoothing,
            anchors=case.anchors,
        )
        chunked = [loss.detach(), *torch.autograd.grad(loss, tensors)]
        for which, numbers in enumerate((interpreted[name], chunked)):
            for place, (found, wanted) in enumerate(zip(numbers, naive(case), strict=True)):
                distances[which, place] += (found - wanted).norm() / wanted.norm().clamp(min=1e-30)
    assert (distances[0] <= 1.5 * distances[1]).all(), distances


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("kernel", ["row_sums", "logit_gradients"])
def test_the_kernels_compile_for_their_devices(
    kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: Triton's compiler and CUDA's assembler are in Triton's package."""
    triton = pytest.importorskip(
        "triton", reason="Triton compiles the kernels: pip install 'accel_train[test]' on Linux"
    )
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from accel_train.losses import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = {"row_sums": kernels.row_sums, "logit_gradients": kernels.logit_gradients}[kernel]
    settings: dict[str, Any] = {"shared": True, "both": True, **fused.TILE}
    constants = {name: value for name, value in settings.items() if name in function.arg_names}
    numbers = {"first_row", "end_row", "first_column", "end_column", "num_columns", "width", "columns_of_split"}
    types = dict.fromkeys(function.arg_names, "*fp32") | dict.fromkeys(numbers & {*function.arg_names}, "i32")
    types |= {"image_key": "*i64", "text_key": "*i64"} | dict.fromkeys(constants, "constexpr")
    if "even" in types:
        types["even"] = "fp32"
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(types) if types[name][0] in "*i"}
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=fused.LAUNCH)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    assert len(compiled.asm["cubin"]) > 0


@pytest.mark.parametrize("noise", [3.0, 1.0, 0.3])
def test_three_products_in_tf32_leave_out_less_than_one_in_fp32_rounds_away(noise: float) -> None:
    """As tensor cores take them: what lies behind the 10 bits of TF32 is cut off the rest, too. Sums are in float64."""
    image, text, _ = (tensor.detach() for tensor in Case(rows=256, width=512, noise=noise).features())
    exact = image.double() @ text.double().T
    (one, one_rest), (other, other_rest) = fused._in_tf32(image), fused._in_tf32(text)
    one_rest, other_rest = ((rest.view(torch.int32) & -0x2000).view(torch.float32) for rest in (one_rest, other_rest))
    parts = ((one_rest, other), (one, other_rest), (one, other))
    three = torch.stack([left.double() @ right.double().T for left, right in parts]).sum(0)
    assert (three - exact).norm() < 0.5 * (image @ text.T - exact).norm()
    assert (one.double() @ other.double().T - exact).norm() > 100 * (three - exact).norm()


def test_others_products_stay_in_the_precision_that_was_set() -> None:
    settings, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    with fused._tf32():
        assert settings.fp32_precision == "tf32"
    assert (settings.fp32_precision, settings.allow_tf32) == (before, False)


@pytest.fixture
def pretend_h100(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that the kernels are for, as far as questions about it go."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    return torch.device("cuda")


def test_what_stands_in_the_way_is_said(pretend_h100: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert info_nce_in_words(pretend_h100, 16_384, None) == "InfoNCE runs in fused kernels"
    assert (
        info_nce_in_words(pretend_h100, 16_384, 512)
        == "InfoNCE runs by chunks of 512 rows: loss.chunk_size asks for it"
    )
    assert "16,384 and more" in info_nce_in_words(pretend_h100, 16_383, None)
    assert "needs CUDA" in info_nce_in_words(CPU, 16_384, None)
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert "pip install triton" in info_nce_in_words(pretend_h100, 16_384, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    assert info_nce_in_words(pretend_h100, 16_384, None).endswith("and this is NVIDIA L40S")


@pytest.mark.parametrize(
    ("settings", "dtype", "fuses"),
    [({}, torch.float32, True), ({"chunk_size": 4}, torch.float32, False), ({}, torch.float64, False)],
)
def test_the_kernels_are_taken_where_nothing_stands_in_the_way(
    settings: dict[str, int], dtype: torch.dtype, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(contrastive, "obstacle", lambda device, num_rows: None)
    monkeypatch.setattr(contrastive.FusedInfoNCE, "apply", lambda *inputs: taken.append(inputs) or inputs[0].sum())
    image, text, scale = (tensor.detach().to(dtype) for tensor in Case(rows=6).features())
    key = torch.arange(6)
    info_nce(image, text, scale, image_key=key, text_key=key, positives="shared", label_smoothing=0.1, **settings)
    assert bool(taken) == fuses
    if fuses:
        assert taken[0][3:] == ((key, key), 0.1, (0, 6))
        with pytest.raises(ValueError, match="image_key"):
            info_nce(image, text, scale, positives="shared")
