"""Two real processes: every rank's codebook is the same bit for bit, and equal to one process on the whole batch."""

import os
import socket
import subprocess
import sys

import torch
import torch.distributed as dist

from visual_tokenizer import build_quantizer

FIELDS = {
    "codebook_size": 32,
    "code_dim": 4,
    "initializer": {"type": "kmeans", "samples": 64},
    "reseeder": {"type": "hard_example", "every_steps": 2, "usage_below": 0.9},
}


def batches(steps=5):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 16, 4, generator=generator) * (1 + step) for step in range(steps)]


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(rank)  # ranks that draw different numbers must still agree
    quantizer = build_quantizer("vq", **FIELDS)
    for batch in batches():
        quantizer(batch[rank::2])
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    without = build_quantizer("vq", **{**FIELDS, "reseeder": None})
    for batch in batches():
        without(batch[rank::2])
    torch.save(without.state_dict(), f"{folder}/without-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_agree_and_equal_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for stem in ("", "without-"):
        first, second = (torch.load(tmp_path / f"{stem}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
    single = build_quantizer("vq", **{**FIELDS, "reseeder": None})
    for batch in batches():
        single(torch.cat([batch[0::2], batch[1::2]]))
    torch.testing.assert_close(single.codebook.data, first["codebook"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single.shares, first["shares"])


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
