"""Provide the jinja environment that Hugging Face's templates are written for, over texts that carry marks.

It is that of transformers, utils/chat_template_utils.py: immutable sandbox, trim_blocks, lstrip_blocks, loop controls,
`{% generation %}` blocks, a `tojson` that does not escape for HTML, and the functions `raise_exception`,
`strftime_now`, `namespace`, `dict`, `range`. There is no loader. The messages of errors are our own.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.parser import Parser
from jinja2.runtime import Context
from markupsafe import Markup

from . import filters
from .formatting import format_text, percent
from .marked import Marked, Untracked, joined, marked, tainted, text_of, unknown

MAX_RANGE = jinja2.sandbox.MAX_RANGE


class TemplateRaised(Exception):
    """Raised if the template calls `raise_exception`."""


class Misused(TemplateRuntimeError):
    """Raised in place of an error of Python or jinja that would puzzle the author of a template."""


def kind(value: object) -> str:
    """Name the type of a value in the words of a template's author."""
    names = {bool: "a truth value", int: "a number", float: "a number", type(None): "none", dict: "an object"}
    names |= {list: "a list", tuple: "a list", range: "a range"}
    return "a text" if isinstance(value, str) else names.get(type(value), "this")


class Undefined(jinja2.Undefined):
    """Jinja's, with messages of our own."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        """Return the message of the error."""
        if self._undefined_hint:
            return self._undefined_hint
        name = repr(self._undefined_name)
        if self._undefined_obj is jinja2.utils.missing:
            return f"{name} is not defined"
        return f"{kind(self._undefined_obj)} has no {name}"


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; the body is rendered as it stands."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse a block into its body."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that could stand in for Python's own attributes (`__html__`, `__class__`, ...)."""

    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {str(name)!r}")
        super().__setitem__(name, value)


def namespace(*pairs: Any, **values: Any) -> Namespace:
    """Make a namespace, as `namespace` in a template does."""
    made = Namespace()
    for name, value in dict(*pairs, **values).items():
        made[name] = value
    return made


class MakeDict:
    """Stands for `dict` without giving access to the class and its attributes."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def raise_exception(message: object) -> NoReturn:
    """Refuse the conversation with the template's own message."""
    raise TemplateRaised(str(message))


def strftime_now(form: str) -> str:
    """Format the current time."""
    text = datetime.now().strftime(form)
    return unknown(text) if tainted(form) else text


def safe_range(*numbers: int) -> range:
    """Make a range of at most MAX_RANGE numbers."""
    made = range(*numbers)
    if len(made) > MAX_RANGE:
        raise Misused(f"asks for a range of {len(made)}, expected at most {MAX_RANGE}")
    return made


class Generator(CodeGenerator):
    """Jinja's compiler, with code that joins texts and their marks."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Compile the operator `~` into a call of `joined_values`."""
        self.write("environment.joined_values((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: Frame) -> None:
        self.fail("autoescape has no place in a chat template", node.lineno)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The filters, functions and operators that a chat template can use, with marks kept."""

    code_generator_class = Generator
    concat = staticmethod(joined)
    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, jinja2.ext.loopcontrols],
            undefined=Undefined,
            finalize=text_of,
        )
        del self.globals["lipsum"]
        self.filters = filters.table()
        self.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
        self.globals.update(namespace=namespace, dict=MakeDict(), range=safe_range)

    def joined_values(self, values: Iterable[Any]) -> str:
        return joined(map(text_of, values))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(_tracked(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(_tracked(obj), argument)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Return the value of an unsafe attribute: any use of it raises SecurityError."""
        problem = f"asks for {str(attribute)!r} of {kind(obj)}, which no template may have"
        return self.undefined(problem, name=attribute, obj=obj, exc=SecurityError)

    def wrap_str_format(self, value: Any) -> Any:
        """Replace `format` and `format_map` of a Marked text by `format_text`."""
        method = super().wrap_str_format(value)
        if method is None or not isinstance(value.__self__, Marked):
            return method
        formatter = jinja2.sandbox.SandboxedFormatter(self)

        def call(*args: Any, **values: Any) -> str:
            if value.__name__ == "format_map":
                args, values = (), dict(*args, **values)
            return format_text(formatter, value.__self__, args, values)

        return call

    def call(__self, __context: Context, __obj: Any, *args: Any, **values: Any) -> Any:
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"calls {kind(__obj)}, which no template may call")
        result = __context.call(__obj, *args, **values)
        if isinstance(getattr(__obj, "__self__", None), Markup) and tainted([*args, *values.values()]):
            return unknown(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator. Raises Untracked for text marked safe, and Misused for operands of wrong types."""
        if isinstance(left, Markup | filters.Safe) or isinstance(right, Markup | filters.Safe):
            if tainted([left, right]):
                raise Untracked(f"'{operator}' on text that was marked safe")
        try:
            if operator == "%" and isinstance(left, str):
                return percent(left, right)
            return super().call_binop(context, operator, left, right)
        except TypeError:
            raise Misused(f"cannot do {kind(left)} {operator} {kind(right)}") from None

    def _load_template(self, name: Any, globals: Any) -> NoReturn:
        raise SecurityError("asks for another template, and there is none")


def _tracked(obj: Any) -> Any:
    """Convert a plain text to one whose methods keep marks."""
    if isinstance(obj, filters.Safe):
        raise Untracked("a part of text that was marked safe")
    return marked(obj) if type(obj) is str else obj
