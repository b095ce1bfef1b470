"""What a model was asked, as plain data with the pictures' files inside."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..chat.calls import Tool
from ..chat.messages import ImagePart, Message, TextPart, parse_messages
from ..chat.sources import decode_source
from ..errors import ParameterError
from ..generation.request import Request
from ..images.decoding import read_file
from ..model import Llava


@dataclass(frozen=True, slots=True)
class RecordedTool:
    """A function as the prompt described it. `parameters`: a JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A conversation in OpenAI's form, a raw prompt with its pictures, or token ids: one of the three."""

    messages: list[Any] | None = None
    prompt: str | None = None
    token_ids: list[int] | None = None
    images: list[str] = field(default_factory=list)
    """Of a raw prompt, as data URIs."""
    add_generation_prompt: bool = True
    tools: list[RecordedTool] = field(default_factory=list)
    """Functions that the model may call."""
    continues: bool = False
    """Whether the answer goes on in the middle of a text; of a conversation, that of its last message."""

    @classmethod
    def conversation(
        cls, messages: object, *, add: bool = True, continues: bool = False, tools: Sequence[Tool] = ()
    ) -> "RecordedRequest":
        """Keep a conversation in any form that `parse_messages` takes; files are read."""
        kept = [_as_openai(message) for message in parse_messages(messages)]
        functions = [RecordedTool(tool.name, tool.description, dict(tool.parameters)) for tool in tools]
        return cls(messages=kept, add_generation_prompt=add, tools=functions, continues=continues)

    @classmethod
    def raw(cls, prompt: str, images: Sequence[Path]) -> "RecordedRequest":
        """Keep a prompt as it stands, and its pictures."""
        return cls(prompt=prompt, images=[data_uri(read_file(path)) for path in images])

    def request(self, model: Llava) -> Request:
        """Return what was asked, as a model of any kind takes it. Raises a LlavaError for what is wrong with it."""
        given = [value for value in (self.messages, self.prompt, self.token_ids) if value is not None]
        if len(given) != 1:
            raise ParameterError("asked", "messages", f"{len(given)} of messages, prompt and token_ids, expected one")
        if self.messages is not None:
            messages = parse_messages(self.messages, "asked.messages", allow_objects=False)
            tools = [Tool(t.name, t.description, t.parameters, f"asked.tools[{i}]") for i, t in enumerate(self.tools)]
            return model.prompts.conversation(
                messages, add=self.add_generation_prompt, continues=self.continues, tools=tools
            )
        sources = [decode_source(uri, f"asked.images[{i}]", "image", False) for i, uri in enumerate(self.images)]
        return replace(model.prompts.of(given[0], sources), continues=self.continues)


def _as_openai(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI's interface has it: its content is a list if it was one."""
    parts = [_part(part) for part in message.parts]
    content = parts if message.listed else parts[0]["text"] if parts else None
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.calls:
        made["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
            for c in message.calls
        ]
    return made | ({} if message.result_of is None else {"tool_call_id": message.result_of.id})


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    data = part.source if isinstance(part.source, bytes) else read_file(Path(str(part.source)))
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


def data_uri(data: bytes) -> str:
    """Return a file as a data URI. The decoder finds out what kind of picture it is."""
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()
