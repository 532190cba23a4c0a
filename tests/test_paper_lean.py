"""DC-AE in little memory against DC-AE as it comes; SANA's attention, which xformers must not touch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ditic_stream import families
from ditic_stream.errors import ConfigError
from ditic_stream.models import layers
from ditic_stream.models.paper import backbones, lean, lean_encoder, seeded
from ditic_stream.models.paper.config import OFFICIAL, PaperConfig
from ditic_stream.models.paper.elic import ElicAnalysis
from ditic_stream.models.paper.lean import PixelDecoder, StripNorm, in_strips, local_stages, parts, reach_cells
from ditic_stream.models.paper.lut import HIGH, LOW, _exact, look_up_table

pytestmark = pytest.mark.skipif(not find_spec("diffusers"), reason="the extra `paper` is not installed")
CELL = 32


@pytest.fixture(scope="module")
def config() -> PaperConfig:
    """The released depths, so the released reach; narrow."""
    vae: dict[str, Any] = {**OFFICIAL.vae, "attention_head_dim": 8}
    for side in ("encoder", "decoder"):
        vae[f"{side}_block_out_channels"] = [8, 8, 8, 16, 16, 32]
    transformer = {
        **OFFICIAL.transformer, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16,
        "cross_attention_head_dim": 8, "num_cross_attention_heads": 2, "num_layers": 2, "caption_channels": 24,
    }  # fmt: skip
    return PaperConfig.of(vae, transformer)


def seeded_module(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    drawn = {k: seeded.seeded_tensor(f"{prefix}.{k}", tuple(v.shape)) for k, v in module.state_dict().items()}
    module.load_state_dict(drawn)
    return module.requires_grad_(False)


def autoencoder(config: PaperConfig) -> Any:
    return seeded_module(backbones.autoencoder(config), "vae")


def latent(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(1, 32, rows, cols, generator=torch.Generator().manual_seed(7))


# The exact split


def test_the_released_decoder_reaches_seven_cells() -> None:
    assert local_stages(OFFICIAL.vae) == 3
    assert reach_cells(OFFICIAL.vae, 3) == 7


@pytest.mark.parametrize("strip", [lean.STRIP_ELEMENTS, 20000], ids=["whole deep stages", "deep stages in strips"])
@torch.inference_mode()
def test_tiles_with_their_halo_equal_the_untiled_decode(config: PaperConfig, strip: int) -> None:
    x = latent(5, 6).double()
    whole = PixelDecoder(autoencoder(config).double().decoder, config.vae)(x)
    tiled = PixelDecoder(autoencoder(config).double().decoder, config.vae, tail_cells=8, strip_elements=strip)
    assert tiled.halo == 7
    assert float((tiled(x) - whole).abs().max()) < 1e-12  # sums of some hundred values in another order


@torch.inference_mode()
def test_a_smaller_halo_shows(config: PaperConfig) -> None:
    x = latent(5, 6).double()
    whole = PixelDecoder(autoencoder(config).double().decoder, config.vae)(x)
    short = PixelDecoder(autoencoder(config).double().decoder, config.vae, tail_cells=8, halo=4)(x)
    assert float((short - whole).abs().max()) > 1e-6


@torch.inference_mode()
def test_the_lean_decoder_and_encoder_are_the_stock_ones(config: PaperConfig) -> None:
    stock, x = autoencoder(config), latent(4, 5)
    expected = stock.decode(x).sample
    picture = expected.clamp(-1, 1)
    expected_latent = stock.encode(picture).latent
    found = PixelDecoder(stock.decoder, config.vae, tail_cells=20, strip_elements=20000)(x)
    lean.make_lean(stock.encoder, 20000)
    # float32 sums in another order, through some sixty layers
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(stock.encode(picture).latent, expected_latent, atol=2e-3, rtol=0)


def test_the_released_encoder_reaches_five_cells() -> None:
    assert local_stages(OFFICIAL.vae, "encoder") == 3
    assert lean_encoder.reach_cells(OFFICIAL.vae, 3) == 5


@pytest.mark.parametrize("halo", [None, 3])
@torch.inference_mode()
def test_encoding_in_tiles_with_their_halo_equals_the_whole(config: PaperConfig, halo: int | None) -> None:
    pixels = torch.rand(1, 3, 192, 160, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1
    vae = autoencoder(config).double()
    stock = vae.encode(pixels).latent
    whole = lean_encoder.PixelEncoder(vae.encoder, config.vae)(pixels)
    assert float((whole - stock).abs().max()) < 1e-4, "the stock attention computes in float32"
    tiled = lean_encoder.PixelEncoder(vae.encoder, config.vae, head_cells=8, halo=halo, strip_elements=20000)(pixels)
    off = float((tiled - whole).abs().max())
    assert off < 1e-12 if halo is None else off > 1e-6


@pytest.mark.parametrize(("halo", "exact"), [(lean_encoder.ELIC_REACH, True), (lean_encoder.ELIC_REACH - 1, False)])
@torch.inference_mode()
def test_the_elic_analysis_in_tiles_equals_the_whole(halo: int, exact: bool) -> None:
    with torch.device("meta"):
        names = {name: tuple(tensor.shape) for name, tensor in ElicAnalysis().state_dict().items()}
    elic = ElicAnalysis().double()
    elic.load_state_dict({name: seeded.seeded_tensor(f"aux_codec.{name}", shape) for name, shape in names.items()})
    pixels = torch.rand(1, 3, 32, 640, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    tiled = lean_encoder.in_tiles(elic, pixels, down=lean_encoder.ELIC_DOWN, cells=20, halo=halo)
    assert (float((tiled - elic(pixels)).abs().max()) < 1e-12) == exact


def test_a_decoder_with_attention_at_the_pixels_is_not_split() -> None:
    everywhere = {**OFFICIAL.vae, "decoder_block_types": ["EfficientViTBlock"] * 6}
    assert local_stages(everywhere) == 0
    assert local_stages({**OFFICIAL.vae, "decoder_layers_per_block": [0, 3, 3, 3, 3, 3]}) == 0


@pytest.mark.parametrize(("size", "most"), [(1, 8), (8, 8), (9, 8), (100, 7)])
def test_parts_are_whole_and_none_too_large(size: int, most: int) -> None:
    cut = parts(size, most)
    assert cut[0][0] == 0 and cut[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(cut))
    assert max(end - begin for begin, end in cut) <= most


def test_strips_of_a_local_function_make_the_whole() -> None:
    x, kernel = torch.randn(1, 2, 37, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)

    def local(part: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(part, kernel, padding=1)

    torch.testing.assert_close(in_strips(local, x, halo=1, rows=9), local(x), atol=1e-12, rtol=0)


def test_a_window_of_4096_fits_into_6_gb_and_what_grows_are_the_maps_at_an_eighth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    peak = import_module("benchmarks.paper_memory").peak
    with torch.device("meta"):  # sizes without values: the released decoder at full size, weights left out
        decoder = backbones.autoencoder(OFFICIAL).requires_grad_(False).decoder
        torch.nn.Module.to(decoder, torch.bfloat16)
        split = PixelDecoder(decoder, OFFICIAL.vae)
        counted = peak(partial(split, torch.empty(1, 32, 128, 128, dtype=torch.bfloat16)))
        tail = peak(partial(split._tail, torch.empty(1, 512, 128 + 14, 128 + 14, dtype=torch.bfloat16)))
    one_map = 2 * 512 * 512**2 / 1e9
    assert counted < 6 and counted < tail + 5 * one_map


# Norms


class Largest(TorchDispatchMode):
    """The float32 values of the largest tensor an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_norm_copies_no_whole_map_to_float32_and_gives_the_same(dtype: torch.dtype) -> None:
    from diffusers.models.normalization import RMSNorm

    stock = RMSNorm(16, 1e-5, bias=True).to(dtype)
    x = torch.randn(1, 16, 24, 32, generator=torch.Generator().manual_seed(1)).to(dtype).movedim(1, -1)
    with Largest() as upcast:
        expected = stock(x)
    with Largest() as strips:
        found = StripNorm(stock, 2048)(x)
    assert torch.equal(found, expected)
    assert upcast.values == x.numel() and strips.values <= 2048


# Attention


def transformer(config: PaperConfig) -> Any:
    return seeded_module(backbones.transformer(config), "DiT")


def velocity(network: Any) -> torch.Tensor:
    tokens = torch.randn(1, 77, 24, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return backbones.velocity(network, latent(4, 6), tokens, 999)


def test_xformers_never_touches_linear_attention(config: PaperConfig) -> None:
    network = transformer(config)
    before, kinds = velocity(network), [type(block.attn1.processor) for block in network.transformer_blocks]
    assert {kind.__name__ for kind in kinds} == {"SanaLinearAttnProcessor2_0"}
    # Of diffusers' own method this would make softmax of it, without an error where there is a GPU.
    network.enable_xformers_memory_efficient_attention()
    assert [type(block.attn1.processor) for block in network.transformer_blocks] == kinds
    assert all(block.attn2.processor.backend == "auto" for block in network.transformer_blocks)
    assert torch.equal(velocity(network), before)
    network.disable_xformers_memory_efficient_attention()
    assert [type(block.attn1.processor) for block in network.transformer_blocks] == kinds
    assert all(block.attn2.processor.backend == "sdpa" for block in network.transformer_blocks)
    assert torch.equal(velocity(network), before)
    autoencoder(config).enable_xformers_memory_efficient_attention()  # has none that is softmax


def test_cross_attention_through_the_door_is_the_stock_one(config: PaperConfig) -> None:
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    network = transformer(config)
    found = velocity(network)
    for block in network.transformer_blocks:
        block.attn2.processor = SanaAttnProcessor2_0()
    torch.testing.assert_close(found, velocity(network), atol=1e-5, rtol=0)


class Kernels:
    """Stands for xformers.ops where there is no GPU: the formula of its documentation, and a note of every call."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = 0, error

    def memory_efficient_attention(self, q: Any, k: Any, v: Any, attn_bias: Any = None) -> torch.Tensor:
        self.calls += 1
        if self.error is not None:
            raise self.error
        scores = torch.einsum("blnd,bmnd->bnlm", q, k) * q.shape[-1] ** -0.5
        weights = (scores if attn_bias is None else scores + attn_bias).softmax(-1)
        return torch.einsum("bnlm,bmnd->blnd", weights, v)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    found = Kernels()
    monkeypatch.setattr(layers, "xformers_kernel", lambda: found.memory_efficient_attention)
    layers._say_once.cache_clear()
    return found


def test_the_backend_is_chosen_by_device_by_call_and_by_environment(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (torch.randn(2, 6, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    mask = torch.tensor([True, True, False, True, False, True]).reshape(1, 1, 1, 6).repeat(2, 1, 1, 1)
    for given in (None, mask):
        kernels.calls = 0
        plain = layers.attention(q, k, v, given)
        assert kernels.calls == 0, "not on a CPU, unless asked for"
        torch.testing.assert_close(layers.attention(q, k, v, given, "xformers"), plain, atol=1e-6, rtol=0)
        monkeypatch.setenv(families.ATTENTION_VARIABLE, "xformers")
        torch.testing.assert_close(layers.attention(q, k, v, given), plain, atol=1e-6, rtol=0)
        assert kernels.calls == 2
        assert torch.equal(layers.attention(q, k, v, given, "sdpa"), plain) and kernels.calls == 2
        monkeypatch.delenv(families.ATTENTION_VARIABLE)
    with pytest.raises(ConfigError, match="the attention backend is 'flash'"):
        layers.attention(q, k, v, backend="flash")


def test_a_kernel_that_fails_falls_back_with_one_line_of_log(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    kernels.error = NotImplementedError("No operator found for `memory_efficient_attention_forward`\nand so on")
    with caplog.at_level(logging.INFO, "ditic_stream"):
        for _ in range(3):
            assert torch.equal(layers.attention(q, k, v, backend="xformers"), layers.attention(q, k, v))
    assert len(caplog.messages) == 1 and "No operator found" in caplog.messages[0] and "and so on" not in caplog.text


def test_who_asked_for_xformers_by_name_is_warned_that_it_does_not_serve(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    kernels.error = NotImplementedError("No operator found")
    monkeypatch.setenv(families.ATTENTION_VARIABLE, "xformers")
    with caplog.at_level(logging.INFO, "ditic_stream"):
        layers.attention(q, k, v)
        layers.attention(q, k, v)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('built for another torch')", "absent or broken: built for another torch"),
        ("import nothing_of_that_name", "absent or broken: No module named 'nothing_of_that_name'"),
        ("", "absent or broken: module 'xformers.ops' has no attribute 'memory_efficient_attention'"),
        ("def memory_efficient_attention(q, k): ...", "TypeError: memory_efficient_attention() got an unexpected"),
    ],
)
def test_a_broken_xformers_falls_back_with_one_line_of_log(
    module: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").touch()
    (tmp_path / "xformers" / "ops.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("xformers", "xformers.ops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    layers.xformers_kernel.cache_clear()
    layers._say_once.cache_clear()
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    try:
        with caplog.at_level(logging.INFO, "ditic_stream"):
            for _ in range(3):
                assert torch.equal(layers.attention(q, k, v, backend="xformers"), layers.attention(q, k, v))
    finally:
        layers.xformers_kernel.cache_clear()
        for name in ("xformers", "xformers.ops"):
            sys.modules.pop(name, None)
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]


@pytest.mark.slow
def test_a_broken_xformers_that_is_installed_does_not_keep_diffusers_from_its_networks(tmp_path: Path) -> None:
    """In a process of its own: diffusers looks for xformers once, as it is loaded."""
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "xformers-0.0.35.dist-info").mkdir()
    (tmp_path / "xformers-0.0.35.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: xformers\nVersion: 0.0.35\n"
    )
    script = (
        "import sys; from paper_weights import reduced; from ditic_stream.models.paper import backbones; "
        "print(type(backbones.transformer(reduced())).__name__, 'xformers' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "SanaTransformer2DModel False\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_both_backends_agree_on_a_gpu(dtype: torch.dtype, off: float) -> None:
    """A few units in the last place of values about 1."""
    pytest.importorskip("xformers")
    random = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, n, 16, 72, generator=random).to("cuda", dtype) for n in (256, 77, 77))
    by_xformers, by_torch = (layers.attention(q, k, v, backend=backend) for backend in ("xformers", "sdpa"))
    torch.testing.assert_close(by_xformers, by_torch, atol=off, rtol=0)
    q, k, v = (torch.randn(3, 64, 4, 64, generator=random).to("cuda", dtype) for _ in range(3))
    mask = (torch.arange(64) < 40).reshape(1, 1, 1, 64).repeat(3, 1, 1, 1).cuda()
    by_xformers, by_torch = (layers.attention(q, k, v, mask, backend) for backend in ("xformers", "sdpa"))
    torch.testing.assert_close(by_xformers, by_torch, atol=off, rtol=0)


# Look-up tables


@pytest.mark.parametrize(("kind", "exponent"), [("wsilu", 9), ("gelu", 12), ("halftanh", 13), ("wsilu", -2)])
def test_tables_hold_the_exactly_rounded_function(kind: str, exponent: int) -> None:
    out = 6 if kind == "halftanh" else exponent
    table = look_up_table(kind, exponent, out)
    assert table.dtype == "int16" and len(table) == 65536
    for number in (LOW, -30000, -9001, -1234, -77, -1, 0, 1, 3, 255, 4096, 20011, HIGH):
        assert table[number - LOW] == max(LOW, min(HIGH, _exact(kind, number, exponent, out))), number
