from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import yaml

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, build_quantizer, doctor
from visual_tokenizer.errors import UserError
from visual_tokenizer.evaluation.diagnosis import diagnose, findings, rank_distance, running_values
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.training.trainer import TokenizerTrainer


def pixel_tokenizer(colours):
    """Each pixel is a token: what is measured follows from the pixels."""
    section = {"type": "pixels"}
    quantizer = {"type": "vq", "codebook_size": len(colours), "code_dim": 3, "update": {"type": "frozen"}}
    tokenizer = VisualTokenizer(
        VisualTokenizerConfig(image_size=2, encoder=section, quantizer=quantizer, decoder=section)
    )
    tokenizer.quantizer.codebook.data.copy_(torch.tensor(colours))
    return tokenizer


def picture(*grays):
    return {"pixels": torch.tensor(grays).view(1, 1, 2, 2).expand(1, 3, 2, 2)}


def test_values_are_those_of_the_tokens():
    """Codes 0, ½ and −1; three of four tokens at 0.1, one at 0.6: counts 3, 1, 0, errors 3·0.01."""
    tokenizer = pixel_tokenizer([[0.0] * 3, [0.5] * 3, [-1.0] * 3])
    batches = [picture(0.1, 0.1, 0.1, 0.6), picture(0.1, 0.1, 0.1, 0.1)]
    (report,) = diagnose(tokenizer, batches, torch.device("cpu"))
    assert report.counts.tolist() == [7, 1, 0]
    assert report.ages.tolist() == [0, 1, 2]
    values = report.values
    assert values["usage"] == pytest.approx(2 / 3)
    assert values["dead"] == 1
    entropy = -(7 / 8 * math.log(7 / 8) + 1 / 8 * math.log(1 / 8))
    assert values["perplexity"] == pytest.approx(math.exp(entropy))
    assert values["quantization_error"] == pytest.approx(0.03, rel=1e-4)
    assert values["relative_error"] == pytest.approx(0.03 / (3 * 0.25 * 7 / 64), rel=1e-3)
    assert 0 < values["sample_entropy"] < values["batch_entropy"] < math.log(3)


def test_no_pictures_is_an_error():
    with pytest.raises(UserError, match="no pictures"):
        diagnose(pixel_tokenizer([[0.0] * 3, [1.0] * 3]), [], torch.device("cpu"))


def test_a_collapsed_codebook_is_advised_what_it_lacks():
    values = {"usage": 0.1, "perplexity": 1.5, "dead": 58.0, "relative_error": 0.9, "rank_distance": 0.5}
    quantizer = build_quantizer("vq", codebook_size=64, code_dim=32)
    found = {finding.name: finding for finding in findings(values, quantizer, tokens=1000)}
    assert not any(finding.is_healthy for finding in found.values())
    assert "90.0% of the codes are not in use" in found["usage"].advice
    assert "kmeans" in found["usage"].advice
    assert "hard_example" in found["usage"].advice
    assert "does not reduce its statistics" in found["rank_distance"].advice
    has = {"initializer": {"type": "kmeans"}, "reseeder": {"type": "random", "every_steps": 10}}
    (usage, *_) = findings(values, build_quantizer("vq", codebook_size=64, code_dim=8, normalize=True, **has))
    assert "kmeans" not in usage.advice
    assert "reseeder" not in usage.advice
    for name in ("fsq", "lfq"):
        (usage, *_) = findings(values, build_quantizer(name), tokens=10**6)
        assert "reseeder" not in usage.advice
        assert ("levels" if name == "fsq" else "entropy_weight") in usage.advice


def test_a_healthy_codebook_is_said_to_be_healthy_and_few_tokens_accuse_nobody():
    values = {"usage": 0.99, "perplexity": 50.0, "dead": 1.0, "relative_error": 0.1, "rank_distance": 0.0}
    quantizer = build_quantizer("vq", codebook_size=64)
    assert all(finding.is_healthy for finding in findings(values, quantizer, tokens=1000))
    (usage,) = findings({"usage": 0.2}, quantizer, tokens=64)
    assert usage.is_healthy
    assert "take more pictures" in usage.advice


def test_running_values_are_the_liveness_of_the_worst_codebook():
    quantizer = build_quantizer("residual", depth=2, base={"type": "vq", "codebook_size": 4, "code_dim": 2})
    quantizer.levels[1].liveness.shares.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    quantizer.levels[1].liveness.ages.fill_(7)
    assert running_values(quantizer) == {"usage": 0.25, "perplexity": 1.0, "dead": 3.0, "age": 7.0}
    assert running_values(build_quantizer("fsq")) == {}


def worker(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    quantizer = build_quantizer("vq", codebook_size=4, code_dim=2)
    quantizer.codebook.data.fill_(1.0)
    quantizer.update.reset(quantizer.codebook.data)
    same = rank_distance(quantizer.liveness)
    quantizer.codebook.data[2, 1] += 0.25 * rank
    print(same, rank_distance(quantizer))
    dist.destroy_process_group()


def test_codebooks_that_drift_apart_are_noticed_on_every_rank():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    assert [rank.communicate(timeout=120)[0].split() for rank in ranks] == [["0.0", "0.25"]] * 2


def test_command_line_writes_and_judges(tiny_recipe, tmp_path, capsys):
    recipe = tiny_recipe()
    sections = {name: getattr(recipe, name).to_dict() for name in ("encoder", "decoder")}
    quantizer = {"type": "product", "groups": 2, "base": {"type": "vq", "codebook_size": 8, "code_dim": 4}}
    config = VisualTokenizerConfig(image_size=16, quantizer=quantizer, **sections)
    tokenizer = VisualTokenizer(config)
    for part in tokenizer.quantizer.parts:
        part.codebook.data[1:] = 1000.0
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    assert doctor.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 1
    assert "87.5% of the codes are not in use" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    written = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [codebook["name"] for codebook in written["codebooks"]] == ["codebook 0", "codebook 1"]
    assert (tmp_path / "out" / "diagnosis.png").stat().st_size > 0
    assert doctor.main(["--model", str(tmp_path / "nowhere"), "--output", str(tmp_path)]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_training_records_health(tiny_recipe):
    recipe = tiny_recipe(training__max_steps=4, training__diagnose_every_steps=2)
    trainer = TokenizerTrainer(recipe)
    trainer.train()
    entries = [entry for entry in trainer.log.read() if "health/rank_distance" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert entries[0]["health/rank_distance"] == 0
    assert (trainer.folder / "plots" / "health.png").is_file()


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]))
