"""Two real processes: every rank's codebook is the same bit for bit, and equal to one process on the whole batch."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks.estimators.base import EstimatorConfig
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.parametrizations.base import ParametrizationConfig
from visual_tokenizer.codebooks.regularizers.base import RegularizerConfig
from visual_tokenizer.codebooks.reseeders.base import ReseederConfig
from visual_tokenizer.codebooks.updates.base import UpdateConfig

GRADIENT = {"type": "gradient"}
KMEANS = {"type": "kmeans", "samples": 64}


def cases(features):
    """Yield a name and the fields of `vq` for every part of a codebook, and some in company."""
    for name in EstimatorConfig.family.names():
        yield f"estimator-{name}", {"estimator": {"type": name}, "update": GRADIENT}
    for name in UpdateConfig.family.names():
        yield f"update-{name}", {"update": {"type": name}}
    for name in ParametrizationConfig.family.names():
        yield f"parametrization-{name}", {"parametrization": {"type": name}, "update": GRADIENT}
    for name in InitializerConfig.family.names():
        path = {"path": features} if name == "features" else {}
        yield f"initializer-{name}", {"initializer": {"type": name, **path}}
    for name in ReseederConfig.family.names():
        reseeder = {"type": name, "every_steps": 2, "usage_below": 0.9}
        yield f"reseeder-{name}", {"reseeder": reseeder, "initializer": KMEANS}
    for name in RegularizerConfig.family.names():
        yield f"regularizer-{name}", {"regularizers": [{"type": name}], "update": GRADIENT}


# Nothing in these depends on what a rank draws, so that two processes must equal one.
WITHOUT_DRAWS = (
    "estimator-straight_through",
    "estimator-rotation",
    "estimator-soft",
    "estimator-index_backpropagation",
    "update",
    "parametrization",
    "initializer-kmeans",
    "regularizer",
)


def train(fields, batches):
    """Train three steps as DDP would: gradients are averaged over ranks."""
    torch.manual_seed(9)
    quantizer = build_quantizer("vq", codebook_size=32, code_dim=4, **fields)
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(rank)  # ranks that draw different numbers must still agree
    trained = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    for batch in batches:
        latents = batch.clone().requires_grad_()
        output = quantizer(latents)
        loss = output.codes.square().mean() + sum(output.losses.values())
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained) if trained else [], strict=True):
            if dist.is_initialized():
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            parameter.data.sub_(gradient, alpha=0.5)
    return quantizer.state_dict()


def whole_batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 16, 4, generator=generator) * (1 + step) for step in range(5)]


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    batches = [batch[rank::2] for batch in whole_batches()]
    states = {name: train(fields, batches) for name, fields in cases(f"{folder}/features.safetensors")}
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_file({"features": torch.randn(64, 6)}, folder / "features.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(folder)]) for rank in (0, 1)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


NAMES = [name for name, _ in cases("")]


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_has_the_same_codebook_bit_for_bit(states, name):
    first, second = states[0][name], states[1][name]
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(WITHOUT_DRAWS)])
def test_two_processes_equal_one_on_the_whole_batch(states, name):
    fields = dict(cases(""))[name]
    single = train(fields, [torch.cat([batch[0::2], batch[1::2]]) for batch in whole_batches()])
    for key, value in single.items():
        torch.testing.assert_close(value, states[0][name][key], atol=2e-5, rtol=1e-4, msg=f"{name} {key}")


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
