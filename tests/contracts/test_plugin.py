"""A new quantizer is one file, one test, one recipe: contract tests, recipe test and CLI find it by themselves."""

import os
import subprocess
import sys
from pathlib import Path

from visual_tokenizer.registry import PLUGINS_VARIABLE

ROOT = Path(__file__).parents[2]

QUANTIZER = '''"""Signs of the channels. Paper: none, arXiv:0000.00000."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig


@dataclass(kw_only=True)
class SignsConfig(QuantizerConfig):
    """Fields of signs."""

    bits: int = 6
    """Channels; 1 or more."""


class Signs(Quantizer):
    """One bit a channel."""

    Config = SignsConfig

    def __init__(self, config: SignsConfig) -> None:
        super().__init__(config)
        self.code_dim, self.codebook_size = config.bits, 2**config.bits
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, torch.Tensor]:
        return {"basis": 2 ** torch.arange(self.config.bits)}

    def quantize(self, latents: torch.Tensor) -> QuantizerOutput:
        bits = latents.detach() > 0
        codes = bits.float() * 2 - 1
        return QuantizerOutput(
            codes=codes + (latents - latents.detach()),
            indices=(bits.long() * self.basis).sum(-1),
            metrics={"positive": bits.float().sum() / max(bits.numel(), 1)},
        )

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        return (indices[..., None] // self.basis % 2).float() * 2 - 1
'''

RECIPE = """
output_dir: run/signs
image_size: 16
encoder: &cnn {type: cnn, channels: 8, channel_multipliers: [1, 1], blocks_per_level: 1, groups: 4, latent_channels: 8}
quantizer: {type: signs, bits: 4}
decoder: *cnn
losses: [{type: l1}]
data:
  source: {type: openmoji, resolution: 16}
  batch_size: 4
training: {max_steps: 10}
smoke: {training.max_evaluation_pictures: 8}
"""

TEST = """
def test_signs_are_found():
    from visual_tokenizer import build_quantizer
    assert build_quantizer("signs", bits=3).codebook_size == 8
"""


def run(*command: str, plugins: Path) -> str:
    environment = {**os.environ, PLUGINS_VARIABLE: str(plugins), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_quantizer_is_picked_up(tmp_path):
    files = {
        "visual_tokenizer/quantizers/signs.py": QUANTIZER,
        "recipes/tokenizer/signs.yaml": RECIPE,
        "tests/test_signs.py": TEST,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    chosen = ("tests/contracts/test_quantizers.py", "tests/contracts/test_registry.py", "tests/recipes")
    own = str(tmp_path / "tests")
    report = run(sys.executable, "-m", "pytest", *chosen, own, "-k", "signs", "-vv", plugins=tmp_path)
    for expected in (
        "test_indices_give_the_codes_of_eval_mode_exactly[signs] PASSED",
        "test_part[visual_tokenizer.quantizers-signs] PASSED",
        "test_signs_are_found PASSED",
    ):
        assert expected in report
    assert any("test_tokenizer_recipes.py" in line and "PASSED" in line for line in report.splitlines()), report
    assert "signs" in run(sys.executable, "-m", "mmlm.cli", "parts", plugins=tmp_path)
