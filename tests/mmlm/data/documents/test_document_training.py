"""Training on documents: a run resumes where it was, and its model goes on with text and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mmlm.cli import app
from mmlm.data.sets import heldout_sequences, training_sequences
from mmlm.data.tokenize import main as tokenize
from mmlm.generation.interleaved import generate_interleaved, join_pieces
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments, train
from mmlm.training.plan import Machine, plan_run
from mmlm.vocabulary import TEXT
from visual_tokenizer.registry import ConfigError

STORIES = [
    ("a red dog", "in the rain"),
    ("a blue car", "at night"),
    ("a green house", "near the sea"),
]


@pytest.fixture
def stories(write_jsonl: Any) -> Path:
    """Documents of four parts: text, picture, text, picture."""
    lines = [
        {"texts": [first, None, second, None], "images": [None, f"{2 * number}.png", None, f"{2 * number + 1}.png"]}
        for number, (first, second) in enumerate(STORIES)
    ]
    return write_jsonl("stories.jsonl", lines)


@pytest.fixture
def mixture_fields(documents_folder: Path, stories: Path, captioned_pictures: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "words.txt").write_text("\n\n".join(f"a red apple {number} in 1 box" for number in range(40)))
    pictures = {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.3}
    return {
        "model": str(documents_folder),
        "output_dir": str(tmp_path / "run"),
        "data.mixture": [
            {"weight": 2, "documents": {"type": "chat_jsonl", "files": str(stories), "heldout_fraction": 0.0}},
            {"documents": {"type": "pictures", "source": pictures, "caption_dropout": 0.3}, "tokenization": "shards"},
            {"weight": 0.5, "documents": {"type": "text", "files": str(tmp_path / "words.txt"), "separator": "\n\n"}},
        ],
        "data.shards_dir": str(tmp_path / "shards"),
        "training.max_steps": 6,
        "training.batch_size": 4,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 3,
        "optimizer.warmup_steps": 2,
        "optimizer.learning_rate": 0.003,
    }


def test_a_mixture_resumes_where_it_was_and_tokens_may_be_made_on_the_fly(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(mixture_fields, training__evaluate_every_steps=6)
    final = train(recipe)
    run = Path(recipe.output_dir)
    whole = losses_of(run)
    assert len(whole) == 6
    (run / "checkpoint-6" / "manifest.json").unlink()
    train(recipe)
    assert losses_of(run) == whole
    card = (final / "README.md").read_text()
    assert "57% chat_jsonl, 29% pictures, 14% text, split train" in card
    for member in mixture_fields["data.mixture"]:
        member["tokenization"] = "on_the_fly"
    fly = make_recipe(mixture_fields, data__shards_dir=str(tmp_path / "fly"), output_dir=str(tmp_path / "fly_run"))
    train(fly)
    assert losses_of(fly.output_dir) == whole


def test_held_out_documents_keep_their_captions(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]
) -> None:
    mixture_fields["data.mixture"][1]["documents"].update(caption_dropout=1.0, image_to_text_fraction=0.0)
    recipe = make_recipe(mixture_fields)
    processor = load_processor(recipe.model)
    heldout = heldout_sequences(processor, recipe.data, seed=recipe.training.seed).members[0]
    assert heldout.name == "pictures"
    assert min((heldout.rows.kinds[row] == TEXT).sum() for row in range(len(heldout))) > 0
    assert heldout.lengths(range(len(heldout))).tolist() == heldout.rows.lengths.tolist()
    learned = training_sequences(processor, recipe.data, seed=recipe.training.seed, batch_size=4).members[1]
    assert learned.lengths(range(len(learned))).max() < learned.rows.lengths.min()


def test_a_packed_mixture_resumes_and_holds_the_same_sequences(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe(mixture_fields, data__packing=True, data__packing_buffer=16, data__max_length=120)
    train(recipe)
    run = Path(recipe.output_dir)
    whole = losses_of(run)
    (run / "checkpoint-6" / "manifest.json").unlink()
    train(recipe)
    assert losses_of(run) == whole
    rows = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe)).train_dataset.dataset
    for row in range(6):
        documents = rows.documents(row)
        item = rows[row]
        loose = rows.sequences.__getitems__(documents)
        assert item["input_ids"].tolist() == [token for one in loose for token in one["input_ids"].tolist()]
        assert rows.sequences.lengths(documents).tolist() == [len(one["input_ids"]) for one in loose]


def test_the_entry_point_tokenizes_every_member(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], tmp_path: Path, capsys: Any
) -> None:
    words = [f"--{key}={json.dumps(value)}" for key, value in mixture_fields.items()]
    tokenize([*words, "--training.evaluate_every_steps=1"])
    out = capsys.readouterr().out
    for name, split, count in (("chat_jsonl", "train", 3), ("pictures", "heldout", None), ("text", "heldout", None)):
        assert f"{tmp_path}/shards/{name}/{split}: {count if count is not None else ''}" in out
    recipe = make_recipe(mixture_fields)
    assert plan_run(recipe, Machine(devices=1)).steps == 6


def test_wrong_mixtures_are_refused(mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    member = mixture_fields["data.mixture"][0]
    source = {"type": "image_folder", "folder": "x"}
    for changes, message in (
        ({"data__source": source}, "data: either source or mixture must be given, got source=True, mixture of 3"),
        ({"data__mixture": []}, "data: either source or mixture must be given, got source=False, mixture of 0"),
        ({"data__mixture": [{**member, "weight": 0}]}, "weight must be above 0, got 0"),
        ({"data__mixture": [{**member, "tokenization": "never"}]}, "tokenization must be one of shards, on_the_fly"),
        ({"data__mixture": [{**member, "name": "a/b"}]}, "name must be the name of a folder"),
        ({"data__mixture": [{**member, "name": "a"}] * 2}, "name must differ from member to member, got 'a' twice"),
        ({"data__mixture": [{**member, "wieght": 1}]}, r"mixture\[0\]: unknown key 'wieght'.*Did you mean 'weight'"),
        ({"data__mixture": [{"documents": {"type": "obelix"}}]}, r"mixture\[0\]\.documents\.type must be one of"),
        ({"training__max_steps": None, "training__epochs": 2}, r"training\.epochs must be null where there is"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_recipe(mixture_fields, **changes)


def test_documents_longer_than_the_model_are_refused(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("a red apple " * 200)
    mixture_fields["data.mixture"][2]["documents"] |= {"separator": None, "heldout_fraction": 0.0}
    recipe = make_recipe(mixture_fields)
    with pytest.raises(ValueError, match=r"longest document of 'text' has \d+ tokens, more than the 256 of"):
        build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
    recipe = make_recipe(mixture_fields, data__max_length=200, data__shards_dir=str(tmp_path / "cut"))
    rows = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe)).train_dataset.dataset
    assert max(rows.lengths(range(500))) == 200


def test_a_model_trained_on_documents_goes_on_with_text_and_pictures(
    mixture_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], pictures_folder: Path, tmp_path: Path
) -> None:
    mixture_fields["data.mixture"] = mixture_fields["data.mixture"][:1]
    recipe = make_recipe(
        mixture_fields,
        training__max_steps=300,
        training__batch_size=4,
        training__checkpoint_every_steps=1000,
        training__log_every_steps=100,
        optimizer__learning_rate=0.01,
        optimizer__weight_decay=0.0,
        loss__structure=0.1,
        sampling__guidance_scale=1.0,
    )
    final = train(recipe)
    model = AutoModelForCausalLM.from_pretrained(final).eval()
    processor = MultimodalProcessor.from_pretrained(final)
    originals = processor.encode_images(
        [Image.open(pictures_folder / f"{number}.png") for number in range(2 * len(STORIES))]
    )
    known = [np.asarray(image, np.float64) for image in processor.decode_indices(originals)]

    def nearest(image: Image.Image) -> int:
        return int(np.argmin([np.abs(np.asarray(image, np.float64) - one).mean() for one in known]))

    for number, (first, second) in enumerate(STORIES):
        answer = join_pieces(
            generate_interleaved(model, processor, first, text_temperature=0.0, temperature=0.0, max_new_tokens=120)
        )
        assert [type(piece) is str for piece in answer] == [False, True, False]
        assert answer[1].strip() == second
        assert [nearest(answer[0]), nearest(answer[2])] == [2 * number, 2 * number + 1], "those of the document"
    words = ["answer", "--model", str(final), "--prompt", STORIES[0][0], "--output", str(tmp_path / "story")]
    result = CliRunner().invoke(app, [*words, "--temperature", "0", "--max-new-tokens", "120"])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "story" / "answer.md").read_text().split("\n\n")
    assert lines[0] == "![1.png](1.png)"
    assert lines[1] == STORIES[0][1]
    assert Image.open(tmp_path / "story" / "2.png").size == (32, 32)
