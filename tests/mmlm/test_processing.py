from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmlm.layouts.base import MalformedSequenceError
from mmlm.merge_record import tokenizer_hash
from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError


def picture(seed: int, size: tuple[int, int] = (40, 33)) -> Image.Image:
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def merged(make_model, text_tokenizer, codec):
    return merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)


@pytest.fixture(scope="module")
def processor(merged) -> MultimodalProcessor:
    return merged[1]


def test_placeholders_become_the_pictures_blocks(processor: MultimodalProcessor) -> None:
    images = [picture(0), picture(1), picture(2)]
    batch = processor(
        text=["a <image> of <image>", "<image>"],
        images=[images[:2], images[2:]],
        padding=True,
        return_tensors="pt",
    )
    first, second, third = (processor.image_block(indices) for indices in processor.encode_images(images))
    wanted = [1, *processor.text_ids("a "), *first, *processor.text_ids(" of "), *second]
    assert batch["input_ids"][0].tolist() == [int(token) for token in wanted]
    row, mask = batch["input_ids"][1].tolist(), batch["attention_mask"][1].tolist()
    length = len(third) + 1
    assert row[:length] == [1, *third.tolist()]
    assert mask == [1] * length + [0] * (len(row) - length)
    assert set(row[length:]) == {processor.tokenizer.pad_token_id}


def test_options_of_a_call(processor: MultimodalProcessor) -> None:
    image = picture(0)
    left = processor(text=["<image>", "a"], images=[image], padding=True, padding_side="left", return_tensors="pt")
    assert left["input_ids"][1, -1] == processor.text_ids("a")[-1]
    assert left["attention_mask"][1].tolist() == [0] * (left["input_ids"].shape[1] - 2) + [1, 1]
    assert processor(text="a", add_special_tokens=False)["input_ids"] == [processor.text_ids("a")]
    assert processor(images=image)["input_ids"] == processor(text="<image>", images=[image])["input_ids"]
    for options, match in [
        ({"return_tensors": "np"}, "return_tensors"),
        ({"padding_side": "up"}, "padding_side"),
        ({"text": ["a", "a red apple"], "return_tensors": "pt"}, "padding=True"),
        ({"text": None}, "neither"),
    ]:
        with pytest.raises(ValueError, match=match):
            processor(**{"text": "a", **options})


def test_count_mismatch_names_the_sample(processor: MultimodalProcessor) -> None:
    with pytest.raises(UserError, match=r"sample 1 has 1 .* 2 image"):
        processor(text=["a", "b <image>"], images=[[], [picture(0), picture(1)]])
    with pytest.raises(UserError, match=r"0 images for 1 .*sample 1: 1"):
        processor(text=["a", "b <image>"])
    with pytest.raises(UserError, match="2 samples of text, but 1"):
        processor(text=["<image>", "b"], images=[[picture(0)]])


def test_literal_control_and_visual_tokens_stay_text(processor: MultimodalProcessor) -> None:
    for name in ("<|visual_00000|>", "<|image start|>", "<|extra_200|>", "<s>", "</s>", "<pad>"):
        ids = processor.text_ids(f"a {name} b")
        assert processor.tokenizer.convert_tokens_to_ids(name) not in ids
        assert not processor.layout.is_picture_token(torch.tensor(ids)).any()
        assert processor.tokenizer.decode(ids) == f"a {name} b"
        in_call = processor(text=f"a {name} b", add_special_tokens=False)["input_ids"][0]
        assert in_call == ids
    # and the names do parse where nothing protects them
    assert processor.vocabulary.start in processor.tokenizer("<|visual_00000|>").input_ids


def test_encode_block_find_decode_is_the_codecs_own_round_trip(processor, codec) -> None:
    images = [picture(seed) for seed in range(3)]
    indices = processor.encode_images(images)
    assert indices.shape == (3, 4, 4)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(indices, codec.encode(pixels))
    batch = processor(text=["x <image> y <image>", "no", "<image>"], images=images, padding=True, return_tensors="pt")
    decoded = processor.decode_images(batch["input_ids"])
    assert [len(sample) for sample in decoded] == [2, 0, 1]
    wanted = processor.image_processor.postprocess(codec.decode(indices))
    flat = [image for sample in decoded for image in sample]
    assert [image.tobytes() for image in flat] == [image.tobytes() for image in wanted]
    assert processor.decode_images(batch["input_ids"][2])[0][0].tobytes() == wanted[2].tobytes()
    assert [len(sample) for sample in processor.decode_images(batch["input_ids"].tolist())] == [2, 0, 1]
    with pytest.raises(MalformedSequenceError, match="end of the sequence"):
        processor.decode_images(batch["input_ids"][:, :12])


def test_pictures_of_other_grids_decode_too(processor: MultimodalProcessor) -> None:
    small, wide = torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    sequence = torch.cat([processor.image_block(wide), processor.image_block(small), processor.image_block(wide)])
    sizes = [image.size for image in processor.decode_images(sequence)[0]]
    assert sizes == [(40, 16), (16, 16), (40, 16)]


def test_samples_and_prompts(processor: MultimodalProcessor) -> None:
    indices = processor.encode_images([picture(0)])[0]
    drawing, describing = (
        processor.caption_to_image("a dog", indices),
        processor.image_to_caption(indices, "a dog"),
    )
    block, text = processor.image_block(indices).tolist(), processor.text_ids("a dog")
    assert drawing.tolist() == [1, *text, *block, 2]
    assert describing.tolist() == [1, *block, *text, 2]
    prompt = processor.prompt_for_image("a dog")
    assert drawing[: len(prompt)].tolist() == prompt.tolist()
    assert processor.prompt_for_image(None, (4, 4)).tolist() == [1, *processor.layout.header((4, 4)).tolist()]
    assert processor.prompt_for_caption(indices).tolist() == [1, *block]


def test_one_dimensional_codecs(make_model, make_codec, text_tokenizer, tmp_path) -> None:
    patches = {"type": "patch", "patch_size": 8, "width": 16}
    shape = {
        "type": "latent_query",
        "num_latents": 6,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "patches": patches,
    }
    codec = make_codec(encoder=shape, decoder={**shape, "grid_size": 4})
    _, processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)
    indices = processor.encode_images([picture(0)])
    assert indices.shape == (1, 6)
    assert processor.grid == (6,)
    block = processor.image_block(indices[0])
    assert processor.layout.find_blocks(block)[0].grid == (6,)
    assert processor.tokenizer.decode(block[1:5]).replace(" ", "").startswith("1*6")
    processor.save_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path)
    assert again.decode_images(block)[0][0].tobytes() == processor.decode_images(block)[0][0].tobytes()


def test_saved_folder_has_the_promised_files(merged, tmp_path: Path) -> None:
    model, processor = merged
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)  # over itself
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "visual_tokenizer/config.json",
        "visual_tokenizer/model.safetensors",
        "visual_tokenizer/preprocessor_config.json",
    ]
    record = json.loads((tmp_path / "processor_config.json").read_text())
    assert record["layout"]["type"] == "emu3"
    assert record["vocabulary"] == {"start": processor.vocabulary.start, "size": 512, "num_codebooks": 1}
    assert record["codec_hash"] == tokenizer_hash(processor.codec)
    assert record["merge"]["rows"] == model.config.vocab_size


FRESH = """
import sys
import mmlm.processing
from PIL import Image
folder, png = sys.argv[1:]
processor = mmlm.processing.MultimodalProcessor.from_pretrained(folder)
batch = processor(text=["a <image> of <s>"], images=[[Image.open(png)]], return_tensors="pt")
print(batch["input_ids"].tolist())
print(processor.decode_images(batch["input_ids"])[0][0].tobytes().hex())
from transformers import AutoModelForCausalLM
processor.check_model(AutoModelForCausalLM.from_pretrained(folder))
"""


def test_fresh_process_elsewhere_offline_gives_the_same(merged, tmp_path: Path) -> None:
    model, processor = merged
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    elsewhere.mkdir()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image = picture(5)
    image.save(tmp_path / "x.png")
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(elsewhere),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "x.png")],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    ids = processor(text=["a <image> of <s>"], images=[[image]])["input_ids"]
    lines = run.stdout.strip().splitlines()[-2:]
    assert json.loads(lines[0]) == ids
    assert lines[1] == processor.decode_images(ids)[0][0].tobytes().hex()


def test_another_visual_tokenizer_is_refused(merged, tmp_path: Path, make_codec) -> None:
    _, processor = merged
    processor.save_pretrained(tmp_path)
    weights_file = tmp_path / "visual_tokenizer" / "model.safetensors"
    weights = load_file(weights_file)
    weights["to_codes.bias"][0] += 1e-3
    save_file(weights, weights_file, metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        MultimodalProcessor.from_pretrained(tmp_path)
    assert processor.codec_hash in str(error.value)
    assert "merge" in str(error.value)
    without = MultimodalProcessor.from_pretrained(tmp_path, load_codec=False)
    assert without.text_ids("a") == processor.text_ids("a")
    with pytest.raises(UserError):
        without.encode_images([picture(0)])
    with pytest.raises(UserError, match="343"):
        without.attach_codec(make_codec(quantizer={"type": "fsq", "levels": [7, 7, 7]}))


def test_weights_changed_after_the_merge_are_not_saved(make_model, make_codec, text_tokenizer, tmp_path) -> None:
    codec = make_codec()
    processor = merge_vocabulary(make_model(len(text_tokenizer)), text_tokenizer, codec)[1]
    with torch.no_grad():
        codec.to_codes.bias += 1
    with pytest.raises(UserError):
        processor.save_pretrained(tmp_path)


def test_a_model_of_other_size_is_refused(merged, make_model) -> None:
    model, processor = merged
    processor.check_model(model)
    with pytest.raises(UserError, match=r"has 400 rows"):
        processor.check_model(make_model(400))


def test_a_folder_without_a_merge_says_so(text_tokenizer, tmp_path: Path) -> None:
    text_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a merged model"):
        MultimodalProcessor.from_pretrained(tmp_path)
