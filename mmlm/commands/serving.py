"""`mmlm serve`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from mmlm.commands.registration import BatchOption, DeviceOption, ModelOption, be_quiet, command, refuse


@command("serve")
def serve(
    model: ModelOption,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="Name of the model; by default its folder's.")] = None,
    page: Annotated[bool, typer.Option(help="Show a page to try prompts at / (needs the extra 'demo').")] = True,
    max_images: Annotated[int, typer.Option("--max_images", min=1, help="Most pictures of a request.")] = 10,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Most tokens of an answer.")] = 8192,
    max_waiting: Annotated[int, typer.Option("--max_waiting", min=1, help="Most requests in the queue.")] = 64,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
) -> None:
    """Serve a model over HTTP with endpoints in the form of OpenAI's, and a page to try prompts.

    POST /v1/images/generations, POST /v1/chat/completions (stream: true too), GET /v1/models, GET /health.
    There is no password: put a proxy before it where others can reach it.

    [bold]Examples[/bold]

      mmlm serve --model run/lm/final --port 8000

      curl localhost:8000/v1/images/generations -H "Content-Type: application/json" -d '{"prompt": "a red apple"}'
    """
    _require("fastapi", "serve")
    _require("uvicorn", "serve")
    if page:
        _require("gradio", "demo", "or pass --no-page")
    import uvicorn

    from mmlm.merging.folder import load_merged
    from mmlm.serve.app import build_app
    from mmlm.serve.engine import Engine
    from mmlm.serve.limits import Limits

    limits = Limits(
        images_per_request=max_images,
        new_tokens=max_new_tokens,
        waiting_requests=max_waiting,
        batch_size=batch_size,
    )
    be_quiet()
    engine = Engine(*load_merged(model, device), limits)
    name = name or Path(model).resolve().name
    app = build_app(engine, name)
    if page:
        from mmlm.serve.page import mount_page

        app = mount_page(app, engine, name)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=30)


def _require(package: str, extra: str, otherwise: str = "") -> None:
    if importlib.util.find_spec(package) is None:
        refuse(f"{package} is not installed: pip install 'mmlm[{extra}]' {otherwise}".rstrip())
