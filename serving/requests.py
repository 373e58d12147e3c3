"""
The body of a chat completion: which fields are read, and what they may hold. Every other field is refused, since it
would have no effect.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..video_sampling_pllava import MAX_FRAMES
from .errors import ApiError

MAX_MEDIA = 16  # videos and images of a request
MIN_TEMPERATURE = 0.01  # above 0: with less, logits overflow

MAX_ADDRESS = 4096  # characters of a URL or path; a data: URI may be longer


def _check_address(url: str) -> str:
    if len(url) > MAX_ADDRESS and not url.startswith("data:"):
        raise ValueError(f"an address has at most {MAX_ADDRESS} characters; send content as a data: URI")
    return url


Address = Annotated[str, AfterValidator(_check_address)]
Seconds = Annotated[float, Field(ge=0)]


class _Fields(BaseModel):
    """Only the fields that are listed, of exactly their types. A field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_null_out(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class ImageUrl(_Fields):
    url: Address
    detail: Literal["auto"] = "auto"  # the model has one resolution


class Bounds(_Fields):
    """The part of a video from `start` to `end`, in seconds."""

    start: Seconds | None = None
    end: Seconds | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError("`end` must be after `start`")
        return self

    @property
    def are_given(self) -> bool:
        return self.start is not None or self.end is not None


class VideoUrl(Bounds):
    url: Address


class TextPart(_Fields):
    type: Literal["text"]
    text: str


class ImagePart(_Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(_Fields):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Discriminator("type")]


class Message(_Fields):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], Field(min_length=1)]

    @field_validator("content", mode="before")
    @classmethod
    def _make_text_a_part(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_media(self) -> "Message":
        if self.role != "user" and any(not isinstance(part, TextPart) for part in self.content):
            raise ValueError(f"only messages of the user have videos and images, and this one is the {self.role}'s")
        return self


class VideoOptions(Bounds):
    """The bounds are those of all videos that have none of their own."""

    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None


class MediaOptions(_Fields):
    """How media are read, under the names that vLLM gives its request field `media_io_kwargs`."""

    video: VideoOptions = VideoOptions()


class StreamOptions(_Fields):
    include_usage: Literal[True]  # the last chunk always has the usage


class ChatRequest(_Fields):
    messages: Annotated[list[Message], Field(min_length=1)]
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    media_io_kwargs: MediaOptions = MediaOptions()
    # Fields that many clients send with the value that has no effect
    n: Literal[1] = 1
    logprobs: Literal[False] = False
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0

    @field_validator("stop", mode="before")
    @classmethod
    def _make_stop_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < MIN_TEMPERATURE:
            raise ValueError(f"it must be 0 or at least {MIN_TEMPERATURE}")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> "ChatRequest":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: this server does not continue an answer")
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` is only for `stream: true`")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` is the old name of `max_completion_tokens`: send one of them")
        media = [part for message in self.messages for part in message.content if not isinstance(part, TextPart)]
        if len(media) > MAX_MEDIA:
            raise ValueError(f"a request may have {MAX_MEDIA} videos and images; this one has {len(media)}")
        return self

    @property
    def num_videos(self) -> int:
        return sum(isinstance(part, VideoPart) for message in self.messages for part in message.content)

    @classmethod
    def parse(cls, body: bytes) -> "ChatRequest":
        """
        Raises:
            ApiError: 400, with the first fault and its place, if the body is not a request that can be answered.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = _place(fault["loc"])
        raise ApiError(400, _sentence(fault["type"], fault["msg"], place), "invalid_request", place or None)


def _place(location: tuple[int | str, ...]) -> str:
    """Return a location as in "messages[0].content", without the names that pydantic inserts for a choice of types."""
    place = ""
    for index, name in enumerate(location):
        if isinstance(name, int):
            place += f"[{name}]"
        elif not (index and isinstance(location[index - 1], int) and name in {"text", "image_url", "video_url"}):
            place += f".{name}" if place else name
    return place if len(place) <= 100 else f"{place[:100]}..."


def _sentence(kind: str, message: str, place: str) -> str:
    message = message.removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}."
    if kind == "extra_forbidden":
        return f"This server does not support `{place}`: leave it out."
    if kind == "missing":
        return f"`{place}` is missing."
    if kind == "union_tag_not_found":
        return f"`{place}` needs a `type`: text, image_url or video_url."
    if kind == "union_tag_invalid":
        return f"The `type` of `{place}` is unknown; this server reads text, image_url and video_url."
    place = f"`{place}`" if place else "The body"
    about = re.sub(r"^(Input|List|String) should", "should", message)
    return f"{place} {about}." if about != message else f"{place}: {message}."
