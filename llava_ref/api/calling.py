"""What a request says about functions that the model may call: its types, and what follows from them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ..chat.call_form import CallForm
from ..chat.calls import NAME, Tool
from ..chat.rendering import call_form
from ..generation.calling import CallReader
from ..generation.sampling import Grammar
from .errors import refuse
from .fields import StrictModel
from .models import LoadedModel

MAX_TOOLS = 128  # OpenAI's limit
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
FunctionName = Annotated[str, Field(pattern=f"^{NAME.pattern}$", description="The name of the function.")]
Mode = Literal["none", "auto", "required"]


class FunctionSpec(StrictModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = Field(None, description="What the function does, for the model.")
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON Schema of the arguments that llguidance supports; by default there are none."
    )
    strict: bool | None = Field(None, description="Calls match the schema in any case.")

    def tool(self, where: str) -> Tool:
        """Return the function, `where` it stands. Raises ApiError if its arguments are no object."""
        parameters = {"type": "object", **(self.parameters or NO_ARGUMENTS)}
        if parameters["type"] != "object":
            path = f"{where}.parameters.type"
            raise refuse(path, f"{path}: expected object: arguments have names")
        return Tool(self.name, self.description or "", parameters, where)


class ChatTool(StrictModel):
    """A tool of a chat."""

    type: Literal["function"] = Field(description="The one kind of tool that is supported.")
    function: FunctionSpec


class FunctionReference(StrictModel):
    """The name of one of the tools."""

    name: FunctionName


class ChosenTool(StrictModel):
    """The tool that a chat's answer must call."""

    type: Literal["function"] = Field(description="The one kind of tool that is supported.")
    function: FunctionReference


class ResponsesTool(FunctionSpec):
    """A tool of the Responses API."""

    type: Literal["function"] = Field(description="The one kind of tool that is supported.")


class ResponsesChosenTool(FunctionReference):
    """The tool that a response must call."""

    type: Literal["function"] = Field(description="The one kind of tool that is supported.")


ResponsesTools = Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS)]
ChatTools = Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)]
TOOLS = "Functions that the model may call."
TOOL_CHOICE = (
    "none: no call; auto, the default: a call or words, as the model begins; required: a call; "
    "or the name of the function to call."
)
PARALLEL = "Whether an answer may have several calls; the default is true."


@dataclass(frozen=True, slots=True)
class AskedCalls:
    """The functions of a request, and the choice between them as its author wrote it."""

    tools: tuple[Tool, ...]
    choice: Mode = "auto"
    only: str | None = None
    """The one function to call, with the choice "required"."""
    only_at: str = ""
    """The path of its name."""
    several: bool = True

    def __post_init__(self) -> None:
        """Raise ApiError if the choice has no tool."""
        names = [tool.name for tool in self.tools]
        twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            where = f"{self.tools[twice].where}.name"
            raise refuse(where, f"{where}: {names[twice]} occurs twice, expected each function once")
        if self.only is not None and self.only not in names:
            raise refuse(self.only_at, f"{self.only_at}: {self.only} is none of the tools")
        if self.choice == "required" and not names:
            raise refuse("tool_choice", "tool_choice: requires tools")

    @classmethod
    def read(
        cls, tools: Iterable[Tool], choice: Mode | FunctionReference | None, several: bool | None, only_at: str
    ) -> "AskedCalls":
        """Read the fields of a request; a choice that is no word is of the function that it names."""
        if isinstance(choice, FunctionReference):
            return cls(tuple(tools), "required", choice.name, only_at, several is not False)
        return cls(tuple(tools), choice or "auto", several=several is not False)


@dataclass(frozen=True, slots=True)
class Calling:
    """What an answer may be: its grammar, and how calls in it are read. `tools`: described in the prompt."""

    tools: tuple[Tool, ...] = ()
    form: CallForm | None = None
    names: tuple[str, ...] = ()
    grammar: Grammar | None = None
    warnings: tuple[str, ...] = ()

    def reader(self) -> CallReader:
        return CallReader(self.form, self.names)


Wanted = tuple[Mapping[str, Any] | None, str]  # the schema of an answer (None: any object), and where it stands


def decide(loaded: LoadedModel, asked: AskedCalls, wanted: Wanted | None) -> Calling:
    """Decide what an answer may be. `wanted`: the JSON that it has to be if it is no call. Raises ParameterError."""
    if not asked.tools or asked.choice == "none":
        return Calling(grammar=None if wanted is None else loaded.grammars.grammar(*wanted))
    form = call_form(loaded.template, loaded.model.tokenizer)
    callable_tools = [tool for tool in asked.tools if asked.only in (None, tool.name)]
    text: bool | Mapping[str, Any] = asked.choice == "auto"
    if text and wanted is not None:
        text = {"type": "object"} if wanted[0] is None else wanted[0]
    grammar = loaded.grammars.calls(form, callable_tools, several=asked.several, text=text)
    names = tuple(tool.name for tool in callable_tools)
    return Calling(asked.tools, form, names, grammar, _warnings(form))


def _warnings(form: CallForm) -> tuple[str, ...]:
    if form.place == "template":
        return ()
    where = "a system message" if form.place == "system" else "the user's message"
    return (f"tools: the model's chat template has no place for them, so {where} describes them",)
