from __future__ import annotations

import torch
from torch import nn

from visual_tokenizer.training.memory import channels_last, lay_out_channels_last


def test_pictures_clips_and_kernels_are_laid_out_and_nothing_else():
    pictures, clips, tokens = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 4)
    assert channels_last(pictures).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(clips).is_contiguous(memory_format=torch.channels_last_3d)
    assert channels_last(tokens) is tokens
    module = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4)])
    before = [parameter.clone() for parameter in module.parameters()]
    lay_out_channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert torch.allclose(module[1](channels_last(clips.repeat(1, 1, 2, 1, 1))), module[1](clips.repeat(1, 1, 2, 1, 1)))
