"""Bodies of requests, as OpenAI's API has them, and the fields that only models of this kind have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmlm.recipes import sampling
from mmlm.recipes.sampling import PictureSampling, TopK, TopP

Scale = Annotated[sampling.Scale, Field(le=100, allow_inf_nan=False)]
Temperature = Annotated[sampling.Temperature, Field(le=100, allow_inf_nan=False)]


class Body(BaseModel):
    """Unknown fields are an error: a setting that is misspelled should not be passed over."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    """Name of the model; this server has one."""
    user: str | None = None
    """Taken for the sake of clients that send it."""
    seed: int = 0
    """The same seed gives the same answer."""
    guidance_scale: Scale | None = None
    """Classifier-free guidance of pictures; 1 is off. Not OpenAI's, as all that follow."""
    image_guidance_scale: Scale | None = None
    """Turns on guidance with three contexts, in which `guidance_scale` is the text's."""
    negative_prompt: str | None = None
    """What guidance leads away from."""


class ImageRequest(Body):
    """Of `POST /v1/images/generations`."""

    prompt: str
    """What to draw."""
    n: Annotated[int, Field(ge=1)] = 1
    """Number of pictures."""
    size: str = "auto"
    """WIDTHxHEIGHT in pixels, or "auto" for the model's own."""
    response_format: Literal["b64_json"] = "b64_json"
    """Pictures come as PNG files in base64; this server keeps no files to give addresses of."""
    images: list[str] = []
    """Pictures before the prompt, as data: addresses: to be edited, or as examples."""
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None

    def sampling(self, saved: Mapping[str, Any]) -> PictureSampling:
        """Return how the pictures are drawn, by a model with these saved defaults."""
        names = ("guidance_scale", "image_guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")
        return PictureSampling.over(saved, **{name: getattr(self, name) for name in names})


class Address(BaseModel):
    """Where a picture is."""

    model_config = ConfigDict(extra="forbid")

    url: str
    detail: str | None = None
    """Taken for the sake of clients that send it: pictures have one size here."""


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Address | None = None


class Message(BaseModel):
    """A turn of a conversation; `images` as in this server's own answers."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[Part] = []


class ChatRequest(Body):
    """Of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the answer, those of pictures included."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""
    n: Literal[1] = 1
    stream: bool = False
    """Send the answer piece by piece, as server-sent events."""
    temperature: Temperature | None = None
    """Of text, as the next two."""
    top_k: TopK | None = None
    top_p: TopP | None = None
    image_temperature: Temperature | None = None
    """Of pictures, as the next two."""
    image_top_k: TopK | None = None
    image_top_p: TopP | None = None
    max_images: Annotated[int, Field(ge=0)] | None = None
    """Most pictures of the answer; 0 for text alone."""
    open_image: bool = False
    """Begin the answer with a picture."""

    def settings(self) -> dict[str, Any]:
        """Return the given ones as arguments of `generate_interleaved`."""
        names = {
            "text_temperature": self.temperature,
            "text_top_k": self.top_k,
            "text_top_p": self.top_p,
            "temperature": self.image_temperature,
            "top_k": self.image_top_k,
            "top_p": self.image_top_p,
            "guidance_scale": self.guidance_scale,
            "image_guidance_scale": self.image_guidance_scale,
            "negative_prompt": self.negative_prompt,
        }
        return {name: value for name, value in names.items() if value is not None}
