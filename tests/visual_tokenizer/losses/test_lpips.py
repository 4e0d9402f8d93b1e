"""LPIPS on random weights, in the published key layouts, against the formula written out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import MissingWeightsError
from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.lpips import Lpips, LpipsConfig, find_heads
from visual_tokenizer.metrics.lpips import LPIPSMetric, LPIPSMetricConfig
from visual_tokenizer.outputs import TokenizerOutput

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512}
CONVOLUTIONS |= {28: 512}
POOLS = (4, 9, 16, 23)


def trunk() -> dict[str, Tensor]:
    generator, width, state = torch.Generator().manual_seed(0), 3, {}
    for index, out in CONVOLUTIONS.items():
        state[f"features.{index}.weight"] = (
            torch.randn(out, width, 3, 3, generator=generator) * (2 / (9 * width)) ** 0.5
        )
        state[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
        width = out
    return state


def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for n, width in enumerate(WIDTHS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(trunk(), folder / "vgg16.pth")
    torch.save(heads(), folder / "vgg.pth")
    return {"weights": str(folder / "vgg16.pth"), "heads": str(folder / "vgg.pth")}


@pytest.fixture(scope="module")
def loss(files: dict[str, str]) -> Lpips:
    return Lpips(LpipsConfig(**files))


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(2, 3, 32, 24, generator=generator) * 2 - 1
    return pixels, (pixels + 0.3 * torch.randn(pixels.shape, generator=generator)).clamp(-1, 1)


def direct_lpips(pixels: Tensor, other: Tensor) -> Tensor:
    """Zhang et al., eq. 1, with the scaling layer of the published code (shift and scale for inputs in [-1, 1])."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    state, total = trunk(), torch.zeros(len(pixels), dtype=torch.float64)
    a, b = ((side - shift) / scale for side in (pixels, other))
    level = 0
    for index in range(31):
        if index in (*POOLS, 30):
            units = [maps.double() / (maps.double().pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for maps in (a, b)]
            weight = heads()[f"lin{level}.model.1.weight"].double()
            total += F.conv2d((units[0] - units[1]) ** 2, weight).mean((1, 2, 3))
            level += 1
            a, b = (F.max_pool2d(maps, 2) if index < 30 else maps for maps in (a, b))
        elif index in CONVOLUTIONS:
            weights = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            a, b = (F.relu(F.conv2d(maps, *weights, padding=1)) for maps in (a, b))
    return total


def output_of(pixels: Tensor) -> TokenizerOutput:
    nothing = torch.zeros(1, 1, 1)
    return TokenizerOutput(pixels=pixels, raw=pixels, indices=nothing.long(), latents=nothing, codes=nothing)


def test_equals_the_formula_written_out(loss: Lpips, pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(loss.distance(*pair).double(), direct_lpips(*pair), rtol=1e-4, atol=0)
    assert loss.distance(pair[0], pair[0]).tolist() == [0, 0]


def test_the_loss_is_its_mean_in_training_too(loss: Lpips, pair: tuple[Tensor, Tensor]) -> None:
    """Dropout on the heads' input, as their own training had, would give another value at each call."""
    wanted = direct_lpips(*pair).mean().item()
    for _ in range(2):
        found = loss.train()(output_of(pair[1]), {"pixels": pair[0]})
        assert found.item() == pytest.approx(wanted, rel=1e-4)
    clips = [side.unsqueeze(2).expand(-1, -1, 2, -1, -1) for side in pair]
    assert loss(output_of(clips[1]), {"pixels": clips[0]}).item() == pytest.approx(wanted, rel=1e-4)


def test_the_metric_is_the_mean_on_rounded_pictures(files: dict[str, str], pair: tuple[Tensor, Tensor]) -> None:
    metric = LPIPSMetric(LPIPSMetricConfig(**files))
    metric.observe(*pair, torch.empty(0))
    rounded = [((side + 1) * 127.5).round() / 127.5 - 1 for side in pair]
    assert metric.compute() == {"lpips_vgg": pytest.approx(direct_lpips(*rounded).mean().item(), rel=1e-4)}
    assert len(metric.protocol()["weights_digest"]) == 33


def test_gradients_reach_the_reconstruction_only(loss: Lpips, pair: tuple[Tensor, Tensor]) -> None:
    pixels, reconstruction = (side[:1].clone().requires_grad_() for side in pair)
    loss(output_of(reconstruction), {"pixels": pixels}).backward()
    assert pixels.grad is None
    assert reconstruction.grad is not None
    assert (reconstruction.grad != 0).float().mean() > 0.9


def test_the_network_is_neither_saved_nor_optimised_but_follows_to(files: dict[str, str]) -> None:
    moved = Lpips(LpipsConfig(**files)).to("meta")
    assert not moved.state_dict()
    assert not list(moved.parameters())
    assert {parameter.device.type for parameter in moved.network.parameters()} == {"meta"}
    assert {head.device.type for head in moved.heads} == {"meta"}


def test_the_installed_package_gives_the_heads_without_being_imported(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (tmp_path / "lpips" / "__init__.py").write_text("raise ImportError('it wants torchvision')")
    (folder / "vgg.pth").write_bytes(Path(files["heads"]).read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_heads(None) == folder / "vgg.pth"
    assert "lpips" not in sys.modules


def test_what_is_missing_or_wrong_is_named(
    loss: Lpips, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = ModuleType("lpips")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: empty.__spec__)
    with pytest.raises(MissingWeightsError, match="pip install --no-deps lpips"):
        Lpips(LpipsConfig(weights=files["weights"]))
    with pytest.raises(MissingWeightsError, match=r"/nowhere/vgg\.pth"):
        find_heads("/nowhere/vgg.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"vgg16-397923af\.pth"):
        Lpips(LpipsConfig(heads=files["heads"]))
    torch.save({**heads(), "lin3.model.1.weight": torch.rand(1, 384, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"lin3\.model\.1\.weight of shape \(1, 512, 1, 1\)"):
        Lpips(LpipsConfig(weights=files["weights"], heads=str(tmp_path / "alex.pth")))
    with pytest.raises(UserError, match="at least 16 x 16"):
        loss.distance(torch.zeros(1, 3, 15, 32), torch.zeros(1, 3, 15, 32))
