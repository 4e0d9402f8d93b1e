from __future__ import annotations

import torch

from benchmarks.generation import Size, measure


def test_both_ways_draw_the_same_greedy_tokens():
    torch.set_num_threads(1)
    size = Size(hidden=64, layers=2, text_rows=600, levels=(8, 8), side=4, pictures=3)
    result = measure(size, torch.device("cpu"), torch.float32, repeats=1)
    assert result["equal_greedy_tokens"] == 1.0
    assert set(result["pictures_per_second"]) == {"generate, two forwards", "generate_images"}
    assert min(result["pictures_per_second"].values()) > 0
