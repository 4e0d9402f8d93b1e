"""A page to try prompts: the picture grows row by row, and the tokens behind it are shown."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import FastAPI
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from mmlm.recipes.sampling import PictureSampling
from mmlm.serve.engine import DrawingJob, Drawn, Engine, Event, Failed, Finished, Rows
from mmlm.serve.errors import RequestError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: it asks the network
import gradio

CELL = 24
"""Pixels of a token on the map."""


def token_tables(indices: Tensor, num_codebooks: int = 1) -> list[np.ndarray]:
    """Return one table (H, W) of indices for each codebook; a sequence is folded to be about square, -1 at its end."""
    values = indices.numpy()
    values = values[..., None] if num_codebooks == 1 else values
    if values.ndim == 2:
        width = int(np.ceil(len(values) ** 0.5))
        folded = np.full((-(-len(values) // width) * width, num_codebooks), -1, dtype=values.dtype)
        folded[: len(values)] = values
        values = folded.reshape(-1, width, num_codebooks)
    return [values[..., book] for book in range(num_codebooks)]


def token_map(tables: list[np.ndarray], codebook_size: int) -> Image.Image:
    """Return tables (H, W) of indices as colours, dark to bright, side by side."""
    shades = [colormaps["viridis"](table / max(1, codebook_size - 1))[..., :3] for table in tables]
    gap = np.ones((len(tables[0]), 1, 3))
    joined = np.concatenate([part for shade in shades for part in (gap, shade)][1:], axis=1)
    small = Image.fromarray((joined * 255).round().astype(np.uint8))
    return small.resize((small.width * CELL, small.height * CELL), Image.Resampling.NEAREST)


def draw(
    engine: Engine, prompt: str, seed: float, guidance_scale: float, temperature: float
) -> Iterator[tuple[Image.Image, Image.Image | None, list[list[int]] | None]]:
    """Yield the picture as its rows appear, at last with the map and the table of its tokens."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = DrawingJob(
        emit=events.put,
        prompt=prompt[: engine.limits.prompt_characters],
        seed=int(seed),
        sampling=PictureSampling.over(
            engine.processor.sampling, guidance_scale=float(guidance_scale), temperature=float(temperature)
        ),
        wants_rows=True,
    )
    try:
        engine.submit(request)
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Rows):
                yield event.image, None, None
            elif isinstance(event, Drawn) and event.indices is not None:
                vocabulary = engine.processor.vocabulary
                tables = token_tables(event.indices, vocabulary.num_codebooks)
                numbers = np.concatenate(tables, axis=1).tolist()
                yield event.image, token_map(tables, vocabulary.codebook_size), numbers
    except (RequestError, ValueError) as error:
        raise gradio.Error(str(error)) from error
    finally:
        request.cancelled.set()


def mount_page(app: FastAPI, engine: Engine, name: str) -> FastAPI:
    """Put the page at / of the application, after its own paths."""
    saved: dict[str, Any] = engine.processor.sampling

    def on_click(*given: Any) -> Iterator[tuple[Any, Any, Any]]:
        for image, tokens, table in draw(engine, *given):
            shown = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            yield shown, tokens, table

    size = engine.processor.image_processor.size
    scale = max(1, 384 // max(size["height"], size["width"]))
    with gradio.Blocks(title=f"mmlm: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## {name}")
        with gradio.Row():
            with gradio.Column():
                prompt = gradio.Textbox(label="Prompt", lines=2, elem_id="prompt")
                seed = gradio.Number(label="Seed", value=0, precision=0)
                guidance = gradio.Slider(0, 10, value=saved["guidance_scale"], step=0.1, label="Guidance (1: off)")
                warmth = gradio.Slider(0, 2, value=saved["temperature"], step=0.05, label="Temperature (0: likeliest)")
                button = gradio.Button("Draw", variant="primary", elem_id="draw")
            with gradio.Column():
                picture = gradio.Image(label="Picture", format="png", interactive=False, elem_id="picture")
                heat = gradio.Image(label="Tokens, by index", format="png", interactive=False, elem_id="tokens")
        table = gradio.Dataframe(label="Indices", interactive=False, elem_id="indices")
        inputs, outputs = [prompt, seed, guidance, warmth], [picture, heat, table]
        button.click(on_click, inputs, outputs, api_visibility="private")
        prompt.submit(on_click, inputs, outputs, api_visibility="private")
    blocks.queue(max_size=engine.limits.waiting_requests)
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from the network
    mounted: FastAPI = gradio.mount_gradio_app(app, blocks, path="/", theme=theme, ssr_mode=False, footer_links=[])
    return mounted
