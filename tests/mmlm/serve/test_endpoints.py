from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zlib

import pytest
from PIL import Image

from mmlm.generation.images import generate_images
from mmlm.generation.interleaved import generate_interleaved, join_pieces
from mmlm.recipes.sampling import PictureSampling
from mmlm.serve.engine import DrawingJob, Failed, Finished
from mmlm.serve.pictures import data_address

DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"
RED = Image.new("RGB", (40, 20), "red")


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def user(*parts) -> list[dict]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_address(part)}}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def huge_png() -> bytes:
    """A file of some bytes whose header says 60000 × 60000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_health_and_models(client):
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")


def test_pictures_are_those_of_generate_images(client, merged):
    body = {"prompt": "a red dog", "n": 2, "seed": 7, "model": "tiny", "guidance_scale": 2.0, "top_k": 50}
    answer = client.post(DRAW, json=body).json()
    wanted = generate_images(*merged, ["a red dog"], num_images_per_prompt=2, seed=7, guidance_scale=2.0, top_k=50)
    assert [picture_of(one["b64_json"]).tobytes() for one in answer["data"]] == [image.tobytes() for image in wanted]


def test_a_size_chooses_the_grid_and_pictures_before_the_prompt_count(client, merged):
    body = {"prompt": "blue", "size": "24x16", "temperature": 0.0}
    plain = picture_of(client.post(DRAW, json=body).json()["data"][0]["b64_json"])
    assert plain.size == (24, 16)
    edited = picture_of(client.post(DRAW, json={**body, "images": [data_address(RED)]}).json()["data"][0]["b64_json"])
    (wanted,) = generate_images(*merged, [[RED, "blue"]], temperature=0.0, grid=(2, 3))
    assert edited.tobytes() == wanted.tobytes()


def test_answers_are_those_of_generate_interleaved(client, merged):
    body = {"messages": user(RED, "a dog"), "max_tokens": 40, "seed": 3, "open_image": True, "max_images": 1}
    answer = client.post(CHAT, json=body).json()
    settings = {"max_new_tokens": 40, "seed": 3, "open_image": True, "max_images": 1}
    pieces = join_pieces(generate_interleaved(*merged, [RED, "a dog"], **settings))
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "".join(piece for piece in pieces if isinstance(piece, str))
    found = [picture_of(one["image_url"]["url"].split(",")[1]) for one in choice["message"]["images"]]
    assert [image.tobytes() for image in found] == [pieces[0].tobytes()]
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert 0 < answer["usage"]["completion_tokens"] <= 40


def test_a_streamed_answer_is_the_same_in_pieces(client):
    body = {"messages": user("a dog"), "max_tokens": 45, "seed": 1, "open_image": True}
    whole = client.post(CHAT, json=body).json()["choices"][0]
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert [one for delta in deltas for one in delta.get("images", [])] == whole["message"]["images"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        (DRAW, {}, 400, "prompt", "required"),
        (DRAW, {"prompt": "a", "n": 0}, 400, "n", "greater than or equal to 1"),
        (DRAW, {"prompt": "a", "n": 4}, 400, "n", "at most 3"),
        (DRAW, {"prompt": "a", "qualty": "hd"}, 400, "qualty", "not permitted"),
        (DRAW, {"prompt": "a", "model": "other"}, 404, "model", "not 'other'"),
        (DRAW, {"prompt": "a", "size": "big"}, 400, "size", "WIDTHxHEIGHT"),
        (DRAW, {"prompt": "a", "size": "9999x9999"}, 400, "size", "WIDTHxHEIGHT"),
        (DRAW, {"prompt": "a", "size": "33x16"}, 400, "size", "cannot draw 33x16"),
        (DRAW, {"prompt": "a", "response_format": "url"}, 400, "response_format", "b64_json"),
        (DRAW, {"prompt": "a", "top_p": 0}, 400, "top_p", "greater than 0"),
        (DRAW, {"prompt": "a" * 201}, 400, "prompt", "at most 200 characters"),
        (DRAW, {"prompt": "! " * 99, "size": "64x64"}, 400, None, "positions"),
        (DRAW, {"prompt": "a", "images": ["http://localhost/a.png"]}, 400, "images.0", "nothing is fetched"),
        (DRAW, {"prompt": "a", "images": ["data:image/png;base64,!!"]}, 400, "images.0", "not base64"),
        (DRAW, {"prompt": "a", "images": ["data:image/png;base64,AAAA"]}, 400, "images.0", "cannot be read"),
        (DRAW, {"prompt": "a", "images": ["data:image/png;base64," + "A" * 30_000]}, 413, "images.0", "20000 bytes"),
        (DRAW, {"prompt": "a" * 150_000}, 413, None, "100000 bytes"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages.0.content.0", "a text"),
        (CHAT, {"messages": user("a"), "max_tokens": 61}, 400, "max_tokens", "at most 60"),
        (CHAT, {"messages": user("a"), "max_images": 4}, 400, "max_images", "at most 3"),
        (CHAT, {"messages": user("a"), "n": 2}, 400, "n", "1"),
        (CHAT, {"messages": user(RED, RED, RED)}, 400, "messages", "at most 2 pictures"),
        (CHAT, {"messages": user("é" * 199), "stream": True, "max_tokens": 5}, 400, None, "no room"),
    ],
)
def test_what_cannot_be_served_is_an_error_object(client, path, body, status, param, words):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_other_paths_and_broken_bodies_are_error_objects(client):
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get(DRAW).status_code == 405
    broken = client.post(DRAW, content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert broken.json()["error"]["type"] == "invalid_request_error"


def test_a_picture_that_would_unpack_to_gigabytes_is_refused_by_its_header(client):
    address = "data:image/png;base64," + base64.b64encode(huge_png()).decode()
    response = client.post(DRAW, json={"prompt": "a", "images": [address]})
    assert response.status_code == 413
    assert "4096 pixels" in response.json()["error"]["message"]


def test_a_body_of_unsaid_length_is_counted(client):
    def pieces():
        for _ in range(30):
            yield b" " * 10_000

    response = client.post(DRAW, content=pieces(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "100000 bytes" in response.json()["error"]["message"]


def drawing(emit, prompt="a red dog", seed=0, **settings) -> DrawingJob:
    return DrawingJob(emit=emit, prompt=prompt, seed=seed, sampling=PictureSampling(**settings))


def test_waiting_requests_of_equal_settings_are_drawn_together(engine, merged, monkeypatch):
    sizes, ended = [], threading.Semaphore(0)
    events = {0: [], 1: []}

    def listen(number):
        def emit(event):
            events[number].append(event)
            if isinstance(event, Finished):
                ended.release()

        return emit

    original = engine._draw
    monkeypatch.setattr(engine, "_draw", lambda requests: (sizes.append(len(requests)), original(requests))[1])
    for number in range(2):
        engine.submit(drawing(listen(number), f"prompt {number}", seed=number, temperature=0.5))
    engine.start()
    assert all(ended.acquire(timeout=60) for _ in range(2))
    engine.close()
    assert sizes == [2]
    for number in range(2):
        (wanted,) = generate_images(*merged, [f"prompt {number}"], seed=number, temperature=0.5)
        assert events[number][0].image.tobytes() == wanted.tobytes()


def test_one_bad_request_does_not_spoil_its_neighbours(engine):
    events, done = [], threading.Semaphore(0)

    def emit(event):
        events.append(event)
        if isinstance(event, (Failed, Finished)):
            done.release()

    engine.submit(drawing(emit, "too long " * 100))
    engine.submit(drawing(emit, "a dog"))
    engine.start()
    assert all(done.acquire(timeout=60) for _ in range(2))
    engine.close()
    assert sorted(type(event).__name__ for event in events) == ["Drawn", "Failed", "Finished"]


def test_a_full_queue_and_a_closed_engine_refuse(engine):
    events = []
    for _ in range(2):
        engine.submit(drawing(events.append))
    with pytest.raises(ValueError, match="too many requests") as refusal:
        engine.submit(drawing(events.append))
    assert refusal.value.status == 429
    engine.close()
    assert [event.error.status for event in events] == [503, 503]
    with pytest.raises(ValueError, match="shutting down"):
        engine.submit(drawing(events.append))


def test_a_chat_template_is_followed_and_its_marks_cannot_be_written_by_users(client, merged, monkeypatch):
    processor = merged[1]
    eos = processor.tokenizer.eos_token
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + eos + "{% endfor %}assistant:"
    monkeypatch.setattr(processor.tokenizer, "chat_template", template)
    from mmlm.serve.conversation import conversation
    from mmlm.serve.limits import Limits
    from mmlm.serve.requests import ChatRequest

    request = ChatRequest(messages=user(f"a{eos}b\ue0000\ue001", RED))
    pieces = conversation(request, processor, Limits())
    kinds = [type(piece).__name__ for piece in pieces]
    assert [kind for kind in kinds if kind != "Segment"] == ["str", "Image"] or kinds[1] == "str"
    assert pieces[1] == f"a{eos}b0"
    controls = [piece.ids for piece in pieces if hasattr(piece, "ids")]
    assert sum(int((ids == processor.layout.eos_id).sum()) for ids in controls) == 1
    assert processor.layout.eos_id not in processor.text_ids(pieces[1])
    assert client.post(CHAT, json={"messages": user("hi"), "max_tokens": 5}).status_code == 200
