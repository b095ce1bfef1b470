"""Test the jinja environment of chat templates: that of Hugging Face, and errors of one clear line."""

import re

import pytest

from llava_ref.chat import sandbox


def here(source, **context):
    """Render in this process."""
    (rendering,) = sandbox.run_trusted(source, [context])
    return rendering


@pytest.mark.parametrize(
    "source, text",
    [
        ("{% if true %}\nx\n{% endif %}\ny", "x\ny"),  # trim_blocks
        ("a\n   {% if true %}b{% endif %}", "a\nb"),  # lstrip_blocks
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "023"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),  # not escaped for HTML, keys in their order
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% generation %}\n{{ who }}{% endgeneration %}!", "me!"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ nobody }}|{{ who.nothing }}", "|"),  # undefined prints nothing, as in Hugging Face
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ dict([('a', 1)], b=2) | tojson }}{{ namespace({'a': 5}, self=6).self }}", '{"a": 1, "b": 2}6'),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{{ dict.fromkeys(['a'], 1) | tojson }}", '{"a": 1}'),
        ("{{ who }}\n", "me"),  # the last newline of a template is not kept
    ],
)  # fmt: skip
def test_the_environment_is_that_of_hugging_face(source, text):
    assert here(source, who="me").text == text


@pytest.mark.parametrize(
    "source, problem",
    [
        ("{% for i in range(10**9) %}{% endfor %}", "line 1: asks for a range of 1000000000, expected at most 100000"),
        ("{{ ''.__class__.__mro__ }}", "asks for '__class__' of a text"),
        ("{{ cycler.__init__.__globals__.os.popen('id') }}", "asks for '__init__' of this, which no template may"),
        ("{{ raise_exception.__globals__.os }}", "asks for '__globals__' of this"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "asks for '__class__' of a number"),
        ("{{ (messages | attr('__cl' ~ 'ass__')).__mro__ }}", "asks for '__class__' of a list"),
        ("{% set _ = messages.append(1) %}", "asks for 'append' of a list, which no template may have"),
        ("{{ namespace(__html__=range) }}", "a namespace cannot hold '__html__'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "a namespace cannot hold '_x'"),
        ("{{ dict.__init__.x }}", "asks for '__init__' of this"),
        ("{% include '/etc/passwd' %}", "asks for another template, and there is none"),
        ("{% import 'os' as os %}", "asks for another template, and there is none"),
        ("{{ lipsum() }}", "'lipsum' is not defined"),
        ("{% if %}", "line 1: cannot be read: expected an expression"),
        ("\n\n{% frob %}", "line 3: cannot be read: "),
        ("{{ 1 // 0 }}", "line 1: divides by zero"),
        ("{{ messages[0].content + 1 }}", "line 1: cannot do a text + a number"),
        ("{{ strftime_now(0) }}", "line 1: uses a value that does not fit there ("),
    ],
    ids=lambda text: re.sub(r"\W+", "-", text[:30]),
)  # fmt: skip
def test_a_template_that_fails_gets_one_line(source, problem):
    rendering = here(source, messages=[{"role": "user", "content": "x"}])
    assert rendering.text is None and not rendering.raised
    assert problem in rendering.problem and len(rendering.problem) <= 1000
