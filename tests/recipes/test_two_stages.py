"""TiTok's two stages by their recipes: a proxy, then its codes as targets, then pixels with the tokens fixed."""

from __future__ import annotations

import pytest
import torch

import visual_tokenizer
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

PAPER = visual_tokenizer.__path__[0] + "/../recipes/tokenizer/paper"

DECODER = {
    "type": "maskgit",
    "channels": 8,
    "channel_multipliers": [1, 1, 1, 1, 1],
    "blocks_per_level": 1,
    "latent_channels": 8,
    "groups": 4,
}


@pytest.fixture(autouse=True)
def cached_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(name: str, folder, overrides):
    path = f"{PAPER}/{name}.yaml"
    smoke = read_recipe_smoke(path)
    settings = {
        **smoke,
        "output_dir": str(folder),
        "training.max_steps": 2,
        "training.mixed_precision": "no",
        "training.evaluate_every_steps": 0,
        "data.num_workers": 0,
        **overrides,
    }
    trainer = TokenizerTrainer(read_recipe(TokenizerRecipe, path, settings))
    return trainer.train(), trainer.exported


def read_recipe_smoke(path: str):
    return read_recipe(TokenizerRecipe, path, {}).smoke


def test_titok_is_trained_in_two_stages(tmp_path):
    proxy, proxy_model = train(
        "maskgit_vqgan", tmp_path / "proxy", {"decoder": DECODER, "quantizer.codebook_size": 16, "adversarial": None}
    )
    once = {"adversarial": None, "training.ema_decay": 0.0, "decoder.patches.proxy": DECODER}
    losses = [{"type": "proxy_codes", "proxy": str(proxy)}]
    first, stage1 = train(
        "titok_s128", tmp_path / "first", {**once, "losses": losses, "decoder.patches.trained": False}
    )
    patches = stage1.decoder.patches
    with torch.no_grad():
        codes = proxy_model.from_codes(proxy_model.quantizer.indices_to_codes(torch.arange(16)[None]))[0]
    assert torch.equal(patches.codes, codes)
    for name, weight in proxy_model.decoder.state_dict().items():
        assert torch.equal(patches.proxy.state_dict()[name], weight), name

    frozen = ["encoder", "to_codes", "quantizer"]
    _, stage2 = train("titok_s128", tmp_path / "second", {**once, "initialize_from": str(first), "freeze": frozen})
    before, after = stage1.state_dict(), stage2.state_dict()
    for name, weight in after.items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(weight, before[name]), name
    assert not torch.equal(after["decoder.patches.codes"], before["decoder.patches.codes"])
    assert not torch.equal(after["decoder.patches.proxy.stem.weight"], before["decoder.patches.proxy.stem.weight"])
