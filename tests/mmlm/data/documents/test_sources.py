"""Each source on small files, whole and broken."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, DocumentSourceConfig, Picture
from visual_tokenizer.data.decoding import decode_image
from visual_tokenizer.data.sources.base import DataSourceError, hash_fraction

Build = Callable[..., DocumentSource]


def documents(source: DocumentSource, split: str = "train") -> list[Document]:
    return [source.document(row) for row in source.load_encoded(split)]


def shown(document: Document) -> list[str]:
    """The texts, and for each picture its brightest corner, which differs from picture to picture; None: missing."""
    found = []
    for part in document.parts:
        if isinstance(part, Picture):
            found.append("missing" if part.data is None else f"{decode_image(part.data).getpixel((0, 0))}")
        else:
            found.append(part)
    return found


def corner(picture_bytes: Callable[[int], bytes], number: int) -> str:
    return f"{Image.open(io.BytesIO(picture_bytes(number))).convert('RGB').getpixel((0, 0))}"


def test_every_source_is_found() -> None:
    wanted = {"chat_jsonl", "hf_documents", "mmc4", "obelics", "openmoji_stories", "pictures", "text"}
    assert wanted | {"webdataset_documents"} == set(DocumentSourceConfig.family.names())


def test_a_chat_has_roles_and_pictures_in_their_places(build_source: Build, write_jsonl: Any, picture_bytes) -> None:
    content = [{"type": "text", "text": "What is "}, {"type": "image", "image": "3.png"}, {"type": "text", "text": "?"}]
    marked = [{"role": "user", "content": "<image> and <image>"}, {"role": "assistant", "content": "ok"}]
    file = write_jsonl(
        "chat.jsonl",
        [
            {"id": "a", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]},
            "",
            {"messages": marked, "images": ["1.png", "2.png"]},
            {"text": "one <image> two<image>", "images": ["4.png", {"path": "5.png"}]},
            {"text": "no <image> here"},
        ],
    )
    first, second, third, fourth = documents(build_source("chat_jsonl", files=str(file)))
    assert (first.key, second.key) == ("a", "chat.jsonl-00000003")
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    corners = [corner(picture_bytes, number) for number in range(6)]
    assert shown(first) == ["What is ", corners[3], "?", "a dog"]
    assert shown(second) == [corners[1], " and ", corners[2], "ok"]
    assert shown(third) == ["one ", corners[4], " two", corners[5]]
    assert not third.is_chat
    assert shown(fourth) == ["no <image> here"], "without images there are no marks"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no json", r"bad\.jsonl, line 3: not JSON"),
        ({"messages": [{"role": "root", "content": "x"}]}, r"line 3: messages\[0\]\.role must be one of system, user"),
        ({"messages": [{"role": "user<|im_end|>", "content": "x"}]}, r"line 3: messages\[0\]\.role must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "line 3: a content part must be of type"),
        (
            {"messages": [{"role": "user", "content": "x"}], "images": ["0.png"]},
            "line 3: 1 of the images have no place",
        ),
        ({"text": "<image><image>", "images": ["0.png"]}, "line 3: 1 images for 2 places <image>"),
        ({"caption": "x"}, "line 3: one of the keys messages, texts or text"),
        ([1], "line 3: an object is needed"),
    ],
)
def test_a_bad_line_is_named(line: Any, message: str, build_source: Build, write_jsonl: Any) -> None:
    file = write_jsonl("bad.jsonl", [{"text": "a"}, {"text": "b"}, line])
    with pytest.raises(DataSourceError, match=message):
        build_source("chat_jsonl", files=str(file)).load_encoded("train")


def test_obelics_reads_parallel_lists(
    build_source: Build, pictures_folder: Path, picture_bytes, tmp_path: Path
) -> None:
    rows = {
        "texts": [["first", None, None, "last", "end"], [None, "x"], ["a", "b"]],
        "images": [[None, "1.png", "2.png", None, None], ["http://example.com/a.png", None], [None]],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        source = build_source(
            "obelics", files=str(tmp_path / "*.parquet"), images_folder=str(pictures_folder), streaming=streaming
        )
        encoded = list(source.load_encoded("train"))
        corners = [corner(picture_bytes, number) for number in (1, 2)]
        assert shown(source.document(encoded[0])) == ["first", *corners, "last\n\nend"]
        assert len(source.document(encoded[1]).pictures) == 1, "an address is a picture, which will be missing"
        with pytest.raises(BrokenDocumentError, match="texts and images must be of equal length, got 2 and 1"):
            source.document(encoded[2])
    as_bytes = {"texts": [["t", None]], "images": [[None, {"bytes": picture_bytes(7), "path": None}]]}
    datasets.Dataset.from_dict(as_bytes).to_parquet(tmp_path / "bytes.pq")
    (document,) = documents(build_source("obelics", files=str(tmp_path / "bytes.pq")))
    assert shown(document) == ["t", corner(picture_bytes, 7)]


def test_mmc4_sets_pictures_before_their_sentences(
    build_source: Build, write_jsonl: Any, pictures_folder: Path, picture_bytes
) -> None:
    images = [
        {"image_name": "1.png", "matched_text_index": 2, "matched_sim": 0.3},
        {"image_name": "2.png", "matched_text_index": 0, "matched_sim": 0.4},
        {"image_name": "3.png", "matched_text_index": 1, "matched_sim": 0.1},
    ]
    file = write_jsonl("mmc4.jsonl", [{"text_list": ["One.", "Two.", "Three."], "image_info": images}])
    fields = {"files": str(file), "images_folder": str(pictures_folder)}
    (document,) = documents(build_source("mmc4", min_similarity=0.2, **fields))
    assert shown(document) == [corner(picture_bytes, 2), "One. Two.", corner(picture_bytes, 1), "Three."]
    images[0]["matched_text_index"] = 3
    write_jsonl("mmc4.jsonl", [{"text_list": ["One."], "image_info": []}, {"text_list": ["a"], "image_info": images}])
    with pytest.raises(DataSourceError, match=r"line 2: image_info\[0\]\.matched_text_index must be in 0 … 0, got 3"):
        build_source("mmc4", **fields).load_encoded("train")


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_tar_files_of_documents(build_source: Build, picture_bytes, tmp_path: Path) -> None:
    texts = json.dumps({"texts": ["x", None, None], "images": [None, 1, 0]}).encode()
    marked = json.dumps({"text": "a <image> b <image>"}).encode()
    members = [("d/1.json", texts), ("d/1.0.png", picture_bytes(0)), ("d/1.1.png", picture_bytes(1))]
    members += [("d/2.0.png", picture_bytes(2)), ("d/2.1.png", picture_bytes(3)), ("d/2.json", marked)]
    members += [("d/3.0.png", picture_bytes(2)), ("d/4.json", b"{"), ("d/5.json", b'{"text": "plain"}')]
    members += [("d/6.json", json.dumps({"texts": [None], "images": [5]}).encode())]
    write_tar(tmp_path / "a.tar", members)
    source = build_source("webdataset_documents", shards=str(tmp_path / "*.tar"))
    rows = source.load_encoded("train")
    assert rows["key"][:] == [f"d/{number}" for number in range(1, 7)]
    assert shown(source.document(rows[0])) == ["x", corner(picture_bytes, 1), corner(picture_bytes, 0)]
    assert shown(source.document(rows[1])) == ["a ", corner(picture_bytes, 2), " b ", corner(picture_bytes, 3)]
    for number, message in ((2, "no .json member"), (3, "not JSON")):
        with pytest.raises(BrokenDocumentError, match=message):
            source.document(rows[number])
    assert shown(source.document(rows[4])) == ["plain"]
    assert shown(source.document(rows[5])) == ["missing"]


def test_a_truncated_tar_ends_before_what_is_cut(
    build_source: Build, picture_bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = [(f"{number}.{kind}", content) for number in range(5) for kind, content in
             [("json", b'{"text": "a <image>"}'), ("0.png", picture_bytes(number))]]  # fmt: skip
    write_tar(tmp_path / "cut.tar", whole)
    content = (tmp_path / "cut.tar").read_bytes()
    place = content.index(picture_bytes(3)) + 20
    (tmp_path / "cut.tar").write_bytes(content[:place])
    with caplog.at_level(logging.WARNING):
        source = build_source("webdataset_documents", shards=str(tmp_path / "cut.tar"))
        rows = source.load_encoded("train")
    assert rows["key"][:] == ["0", "1", "2", "3"]
    assert "cut off within member 3.0.png" in caplog.text
    assert shown(source.document(rows[2])) == ["a ", corner(picture_bytes, 2)]
    with pytest.raises(BrokenDocumentError, match="0 images for 1 places"):
        source.document(rows[3])
    (tmp_path / "packed.tar.gz").write_bytes(b"\x1f\x8b" + b"0" * 600)
    with pytest.raises(DataSourceError, match="must be a tar file without compression"):
        build_source("webdataset_documents", shards=str(tmp_path / "packed.tar.gz")).load_encoded("train")


def test_data_sets_with_named_columns(build_source: Build, picture_bytes, tmp_path: Path) -> None:
    images = [[{"bytes": picture_bytes(1), "path": None}, {"bytes": picture_bytes(2), "path": None}]]
    features = datasets.Features(
        {
            "body": datasets.Value("string"),
            "pics": datasets.List(datasets.Image()),
            "talk": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    talk = [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "yes"}]
    table = datasets.Dataset.from_dict({"body": ["a <image> b <image>"], "pics": images, "talk": [talk]}, features)
    table.save_to_disk(str(tmp_path / "set"))
    corners = [corner(picture_bytes, number) for number in (1, 2)]
    for streaming in (False, True):
        fields = {"path": str(tmp_path / "set"), "images_column": "pics", "streaming": streaming}
        (document,) = [
            source.document(row)
            for source in [build_source("hf_documents", texts_column="body", **fields)]
            for row in source.load_encoded("train")
        ]
        assert shown(document) == ["a ", corners[0], " b ", corners[1]]
        source = build_source("hf_documents", messages_column="talk", **fields)
        (row,) = source.load_encoded("train")
        assert [turn.role for turn in source.document(row).turns] == ["user", "assistant"]
        assert shown(source.document(row)) == [*corners, "?", "yes"]
    with pytest.raises(DataSourceError, match="texts_column is 'text', but the columns are body, pics, talk"):
        build_source("hf_documents", path=str(tmp_path / "set"), texts_column="text").load_encoded("train")
    with pytest.raises(ValueError, match="either texts_column or messages_column must be given, got None and None"):
        build_source("hf_documents", path="x")


def test_text_is_read_whole_by_separator_or_by_line(build_source: Build, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One ü.\n\n\n\nTwo <image>.\n\nThree.")
    (tmp_path / "b.jsonl").write_text('{"body": "Four."}\n\n{"body": "Five."}\n')
    whole = documents(build_source("text", files=str(tmp_path / "a.txt")))
    assert [document.parts for document in whole] == [["One ü.\n\n\n\nTwo <image>.\n\nThree."]]
    both = build_source("text", files=str(tmp_path / "*"), separator="\n\n", text_key="body")
    assert [d.parts for d in documents(both)] == [["One ü."], ["Two <image>."], ["Three."], ["Four."], ["Five."]]
    with pytest.raises(DataSourceError, match=r"b\.jsonl, line 1: a text under the key 'text'"):
        build_source("text", files=str(tmp_path / "b.jsonl")).load_encoded("train")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataSourceError, match=r"c\.txt: not UTF-8"):
        build_source("text", files=str(tmp_path / "c.txt")).load_encoded("train")


def test_pictures_come_in_every_form(build_source: Build, captioned_pictures: Path) -> None:
    inner = {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.3}
    config = DocumentSourceConfig.family.config(
        {"type": "pictures", "source": inner, "image_to_text_fraction": 0.25, "caption_dropout": 0.4}
    )
    assert DocumentSourceConfig.family.config(config.to_dict()) == config, "as it is written out"
    source = DocumentSourceConfig.family.build(config)
    train, heldout = documents(source, "train"), documents(source, "heldout")
    assert len(train) + len(heldout) == 24
    assert all(hash_fraction(document.key) < 0.3 for document in heldout)
    assert [isinstance(part, Picture) for part in train[0].parts] == [False, True]
    forms = {(0.2, 0.9): [1, 0], (0.3, 0.3): [1], (0.3, 0.5): [0, 1]}
    for chance, places in forms.items():
        assert [placed.place for placed in source.arrange([False, True], chance)] == places
    assert [placed.place for placed in source.arrange([False, True], (0.3, 0.3), is_heldout=True)] == [0, 1]
    with pytest.raises(ValueError, match=r"heldout_fraction must be given as source\.heldout_fraction, got 0\.1"):
        DocumentSourceConfig.family.config({"type": "pictures", "source": inner, "heldout_fraction": 0.1})


def test_documents_are_held_out_by_their_key(write_jsonl: Any) -> None:
    file = write_jsonl("many.jsonl", [{"id": str(number), "text": str(number)} for number in range(400)])
    source = DocumentSourceConfig.family.build({"type": "chat_jsonl", "files": str(file), "heldout_fraction": 0.25})
    train, heldout = ({document.key for document in documents(source, split)} for split in ("train", "heldout"))
    assert len(train | heldout) == 400
    assert not train & heldout
    assert 70 < len(heldout) < 130
    with pytest.raises(DataSourceError, match="split must be one of train, heldout, all, got 'test'"):
        source.load_encoded("test")


def test_stories_are_of_related_emoji_and_follow_from_the_seed(tmp_path_factory: pytest.TempPathFactory) -> None:
    fields = {"type": "openmoji_stories", "resolution": 16, "stories": 60, "heldout_fraction": 0.3}
    fields["cache_dir"] = str(tmp_path_factory.getbasetemp() / "openmoji-16")
    first, again, other = (
        DocumentSourceConfig.family.build({**fields, "seed": seed}).load_encoded("train") for seed in (0, 0, 1)
    )
    assert first["texts"][:] == again["texts"][:]
    assert first["places"][:] == again["places"][:]
    assert first["texts"][:] != other["texts"][:]
    source = DocumentSourceConfig.family.build(fields)
    drawings: Any = source.drawings.load_encoded("all")
    for split in ("train", "heldout"):
        rows = source.load_encoded(split)
        assert len(rows) > 10
        allowed = set(source.drawings.load_encoded(split)["row"])
        for row in rows:
            assert set(row["places"]) <= allowed, "held-out emoji stay out of training stories"
            assert 2 <= len(row["places"]) == len(set(row["places"])) <= 3
            names = [drawings[place]["caption"] for place in row["places"]]
            assert all(name in text for name, text in zip(names, row["texts"], strict=True))
        parts = source.document(rows[0]).parts
        assert [isinstance(part, Picture) for part in parts[:4]] == [False, True, False, True]
        assert decode_image(parts[1].data).size == (16, 16)
