"""`mmlm serve` as a program of its own, and its page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmlm.generation.images import generate_images, generate_indices

sys.path.insert(0, str(Path(__file__).parent))
from web_driver import Browser, free_port, wait_for, why_no_browser


@pytest.fixture
def serve(merged_folder):
    """Start `mmlm serve` with further options; return its address and the process."""
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    started = []

    def start(*options: str) -> tuple[str, subprocess.Popen]:
        port = free_port()
        words = ["serve", "--model", str(merged_folder), "--name", "tiny", "--port", str(port), "--device", "cpu"]
        process = subprocess.Popen([sys.executable, "-m", "mmlm.cli", *words, *options], env={**os.environ})
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200, 120)
        return address, process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_program_serves_and_ends_when_it_is_told_to(serve, merged):
    address, process = serve("--no-page")
    body = json.dumps({"prompt": "a red dog", "seed": 4}).encode()
    request = urllib.request.Request(f"{address}/v1/images/generations", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        picture = Image.open(io.BytesIO(base64.b64decode(json.load(response)["data"][0]["b64_json"])))
    assert picture.tobytes() == generate_images(*merged, ["a red dog"], seed=4)[0].tobytes()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
def test_a_prompt_is_typed_and_a_picture_appears(serve, merged, tmp_path):
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    address, _ = serve()
    browser = Browser()
    try:
        browser.open(address)
        wait_for(lambda: browser.find("#prompt textarea"), 120)
        assert not browser.run("return document.querySelector('#picture img')")
        browser.type("#prompt textarea", "a red dog")
        browser.click("#draw")
        wait_for(lambda: browser.run("return document.querySelector('#tokens img')?.naturalWidth"), 120)
        wait_for(lambda: browser.run("return document.querySelector('#picture img')?.naturalWidth"), 60)
        pixels = browser.run(
            "const image = document.querySelector('#picture img'), canvas = document.createElement('canvas');"
            "canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
            "const brush = canvas.getContext('2d'); brush.drawImage(image, 0, 0);"
            "return [canvas.width, canvas.height,"
            " ...brush.getImageData(6, 6, 1, 1).data, ...brush.getImageData(300, 300, 1, 1).data];"
        )
        text = browser.run("return document.querySelector('#indices').innerText")
        (tmp_path / "page.png").write_bytes(base64.b64decode(browser.screenshot()))
    finally:
        browser.close()
    (picture,) = generate_images(*merged, ["a red dog"])
    assert pixels[:2] == [384, 384]  # 32 pixels, each 12 wide
    assert tuple(pixels[2:5]) == picture.getpixel((0, 0))
    assert tuple(pixels[6:9]) == picture.getpixel((25, 25))
    indices = generate_indices(*merged, ["a red dog"], grid=merged[1].grid)[0]
    assert {str(int(index)) for index in indices.flatten()} <= set(text.split())


def test_the_map_shows_every_token_and_tables_fold_sequences():
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    from mmlm.serve.page import CELL, token_map, token_tables

    (table,) = token_tables(torch.arange(6).view(2, 3))
    assert table.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert token_map([table], 6).size == (3 * CELL, 2 * CELL)
    assert len(token_map([table], 6).getcolors()) == 6
    (folded,) = token_tables(torch.arange(5))
    assert folded.tolist() == [[0, 1, 2], [3, 4, -1]]
    first, second = token_tables(torch.arange(12).view(2, 3, 2), 2)
    assert first.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert second.tolist() == [[1, 3, 5], [7, 9, 11]]
    assert token_map([first, second], 12).width == 7 * CELL
