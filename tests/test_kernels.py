"""kernels.cu: compiled for every GPU, and computed on the CPU beside what torch computes."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip_art.config import ModelConfig
from blip_art.model import kernels
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.kernels import Kernels, as_torch, compile_cuda
from blip_art.model.step import StepDecoder

CPU = torch.device("cpu")
# Instructions of a GPU that have no C.
INSTRUCTIONS = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits))': "value = half_to_float(bits)",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value))': "bits = float_to_half(value)"}
CALLS = {
    "add_norm": "float *x, half_t *a, float *w, float *b, float *k, half_t *n, int r, double e",
    "attend_path": "half_t *q, half_t *k, half_t *v, long long *p, half_t *o, int b, int l, int s",
    "attend_picture": "half_t *q, half_t *s, half_t *o"}


@pytest.mark.parametrize("gpu", ["sm_70", "sm_80", "sm_90"])
@pytest.mark.parametrize("bf16", [0, 1])
def test_kernels_compile_for_every_gpu(gpu, bf16):
    for name, sizes in {"add_norm": {"WIDTH": 768, "KEEP_SUM": 1},
                        "attend_path": {"ROWS": 3, "HEADS": 12},
                        "attend_picture": {"ROWS": 3, "HEADS": 12, "PATCHES": 577}}.items():
        assert name.encode() in compile_cuda(gpu, HALF_IS_BF16=bf16, **sizes)


@pytest.fixture(scope="module", params=[pytest.param("", marks=pytest.mark.skipif(
    not shutil.which("g++"), reason="no g++ here"))])
def on_cpu(tmp_path_factory):
    """Kernels that run on the CPU, a thread each."""
    folder = tmp_path_factory.mktemp("kernels")
    source = (resources.files("blip_art.model") / "kernels.cu").read_text()
    for instruction, function in INSTRUCTIONS.items():
        assert instruction in source
        source = source.replace(instruction, function)

    @functools.cache
    def compiled(name: str, dtype: torch.dtype, **sizes: int):
        arguments = CALLS[name]
        names = ", ".join(part.split()[-1].lstrip("*") for part in arguments.split(","))
        code = folder / f"{name}{dtype}{sizes}.cpp"
        code.write_text(f"""
            #include "{Path(__file__).with_name("gpu_on_cpu.h")}"
            {source}
            extern "C" void run(int blocks, int threads, {arguments}) {{
                launch(blocks, threads, [=] {{ {name}({names}); }});
            }}""")
        defined = [f"-D{key}={value}" for key, value in sizes.items()]
        bf16 = int(dtype is torch.bfloat16)
        subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread",
                        f"-DHALF_IS_BF16={bf16}", *defined, code, "-o", code.with_suffix(".so")],
                       check=True)
        library = ctypes.CDLL(str(code.with_suffix(".so")))

        def run(grid, block, args) -> None:
            library.run(grid[0], block[0], *(
                ctypes.c_void_p(arg.data_ptr()) if isinstance(arg, Tensor)
                else ctypes.c_double(arg) if isinstance(arg, float) else arg for arg in args))
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_compiled", compiled)
        yield compiled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_kernels_compute_what_torch_does(on_cpu, dtype):
    assert as_torch(Kernels(dtype), CPU, dtype)


@pytest.mark.parametrize("wrong", list(CALLS))
def test_kernels_that_do_not_are_not_used(on_cpu, monkeypatch, wrong):
    def compiled(name, *others, **sizes):
        return (lambda **_: None) if name == wrong else on_cpu(name, *others, **sizes)
    monkeypatch.setattr(kernels, "_compiled", compiled)
    assert not as_torch(Kernels(torch.float16), CPU, torch.float16)


class OnGpu(StepDecoder):
    """Holds keys and values of pictures as on a GPU, and uses the kernels."""

    def __init__(self, model, dtype):
        super().__init__(model, dtype)
        self.lays_down = True
        self.kernels = self.encode._kernels = Kernels(dtype)


@torch.inference_mode()
def test_a_decoder_with_kernels_says_what_one_without_does(on_cpu):
    torch.manual_seed(0)
    model = BlipCaptioner(ModelConfig(vit="tiny", image_size=32, text_width=128, text_layers=2,
                                      text_heads=2), 600, 0, 2, [3, 5]).eval()
    images = torch.randn(2, 3, 32, 32)
    words, parents = torch.randint(6, 600, (3, 2, 3, 1)), torch.randint(3, (3, 2, 3))
    said = []
    for decoder in (StepDecoder(model, torch.float16), OnGpu(model, torch.float16)):
        with torch.autocast("cpu", torch.float16):
            image_states = decoder.encode(images)
        state = decoder.state(2, 3, 8, image_states.shape[1])
        decoder.look_at(state, image_states)
        logits = [decoder(state, torch.tensor([[[3, 5]], [[3, 5]]]), 0)]
        for position, (ids, parent) in enumerate(zip(words, parents, strict=True), 2):
            logits.append(decoder(state, ids, position))
            state.follow(parent, position + 1)
        said.append(torch.cat(logits).float())
    assert said[0].std() > 0.1
    torch.testing.assert_close(said[1], said[0], atol=5e-3, rtol=0)
