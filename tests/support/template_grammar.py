"""Random chat templates that look at what was said and change it, for tests against transformers and of the marks."""

import re

from hypothesis import strategies as st

FOLLOWED = """
x.upper() | x.lower() | x.title() | x.capitalize() | x.swapcase() | x.casefold() | x.strip() | x.lstrip('aа ')
x.rstrip('.') | x.split()[-1] | x.split(' ')[0] | x.split('</think>')[-1] | x.rsplit(' ', 1)[0]
x.rsplit(None, 1)[-1] | x.split(None, 1)[-1] | x.partition(' ')[2] | x.partition('zz')[0] | x.rpartition(' ')[0]
x.rpartition(' ')[2] | x.replace('a', '<b>') | x.replace('', '-') | x.replace('', '-', 3) | x.replace(' ', '', 1)
x.replace('a', x) | x[1:] | x[::-1] | x[:3] | x[-2:] | x[0] | x[-1] | x.center(21, '*') | x.center(8)
x.ljust(9, '.') | x.rjust(12) | x.zfill(11) | x.expandtabs(4) | x.removeprefix('a') | x.removesuffix('.')
x.splitlines() JOIN ('+') | x.splitlines(true) JOIN | '{}!'.format(x) | '{:>12}{}'.format(x, 1)
'{a:^9}{{}}'.format(a=x) | '{0[0]}'.format(x) | '{0:.2}'.format(x) | '[%s]' % x | '%-9s|%.2s%%' % (x, x)
'%(k)6s' % {'k': x} | '%s=%d' % (x, 3) | x ~ 1 | 'p' ~ x ~ none | 'p' + x | x + 'q' | x * 2 | 2 * x
'p-'.join([x, 'q']) | x.join(['p', 'q']) | 'pqp'.replace('q', x) | (x, 1) JOIN ('-') | x FILTER trim
x FILTER trim('.') | x FILTER upper | x FILTER lower | x FILTER title | x FILTER capitalize
x FILTER replace('a', 'b') | x FILTER replace(' ', x, 1) | x FILTER tojson | x FILTER tojson(ensure_ascii=true)
[x, 'p'] FILTER tojson | {'k': x, 'j': [x]} FILTER tojson(indent=1)
{'k': x} FILTER tojson(separators=(',', ':'), sort_keys=true) | x FILTER list JOIN (',') | x FILTER reverse
x FILTER reverse FILTER list FILTER last | x FILTER first | x FILTER last | x FILTER indent(2, true)
x FILTER indent('> ', blank=true) | x FILTER indent | x FILTER truncate(9, true) | x FILTER truncate(12, leeway=0)
x FILTER wordwrap(7) | x FILTER wordwrap(5, false, '~') | x FILTER center(20) | x FILTER string
x FILTER default('p') | x FILTER d('p', true) | x FILTER e | x FILTER escape | x FILTER safe
x FILTER map('upper') JOIN | x FILTER batch(3) FILTER map('join') JOIN ('/')
x FILTER slice(2) FILTER map('join') JOIN ('/') | x FILTER sort JOIN | x FILTER unique JOIN
x FILTER select('ne', 'a') JOIN | x FILTER reject('in', 'ab') JOIN | [x, 'p'] FILTER max
[{'k': x}] FILTER map(attribute='k') JOIN | {'k': x}.k | {'k': x}['k'] | dict(k=x).k | [x][0]
[{'k': x}] FILTER selectattr('k', 'eq', x) FILTER map(attribute='k') JOIN | namespace(k=x).k
(x if x FILTER length > 3 else 'p') | [x] FILTER first | '%s' FILTER format(x)
x FILTER attr('upper') is callable ~ x | x['upper']() | ('p' if 'a' in x else x)
[{'k': x}] FILTER groupby('k') FILTER map(attribute='grouper') JOIN | {'k': x} FILTER dictsort FILTER map('last') JOIN
{'k': x}.items() FILTER map('last') JOIN | {'k': x}.get('k') | {'k': x} FILTER items FILTER map('last') JOIN
x FILTER forceescape
"""
UNFOLLOWED = """
x FILTER striptags | x FILTER urlize | x FILTER urlencode | x FILTER pprint | [x] FILTER string | {'k': x} ~ ''
'{!r}'.format(x) | '%r' % x | {'k': x} FILTER xmlattr | x.translate({97: 'b'}) | x.translate({97: 60})
strftime_now(x) | x FILTER length FILTER string | x FILTER wordcount ~ '' | x FILTER int ~ '' | x.find('a') ~ ''
x == 'p' ~ '' | x.encode() ~ '' | x FILTER filesizeformat | (x FILTER safe) + '<' | ('<' FILTER safe) + x
x FILTER round ~ '' | {x: 1} FILTER tojson | x.isupper() ~ ''
"""
TEXTS = (
    "Hello there, World.", "привет мир ß ŉ.", "a", "</think> x y", "<think>\nadd\n</think>\n\n4.",
    " tab\tand \u2028 line\r\nsep ", "ΑΣ ΟΔΟΣ a", "<image>", "</s><|im_end|> <image>", "\ue000\uf8ff a", "1234", "-12",
    "{'a'} %s {0} {{x}}", '"quoted\\ " & <b>', "it's o'clock a-b (c) [d]", "İstanbul ﬀ ǆ", "zz", "x\x00y\x1f\x7f",
    "🙂 é e\u0301", "word " * 9,
)  # fmt: skip


def operations(table: str) -> list[str]:
    """The operations of a table, as jinja expressions over x."""
    lines = " | ".join(table.strip().splitlines()).split(" | ")
    return [line.replace("FILTER", "|").replace(" JOIN", " | join") for line in lines]


SHAPES = (
    "{{ X }}",
    "{{- X -}}",
    "{% set y = X %}{{ y }}",
    "{% set y %}p{{ X }}q{% endset %}{{ y }}",
    "{% macro f(z) %}({{ z }}){% endmacro %}{{ f(X) }}",
    "{% macro g() %}{{ caller() }}{% endmacro %}{% call g() %}{{ X }}{% endcall %}",
    "{% filter upper %}{{ X }}p{% endfilter %}",
    "{% set ns = namespace(y='') %}{% for c in x %}{% set ns.y = ns.y + c %}{% endfor %}{{ ns.y }}{{ X }}",
    "{% for c in X %}{{ loop.index0 }}{{ c }}{% endfor %}",
    "{% generation %}{{ X }}{% endgeneration %}",
    "{% if x.endswith('.') %}P{% endif %}{{ X }}",
    "{% if '</think>' in x %}Q{% elif x | length > 12 %}R{% endif %}{{ X }}",
    "{% for c in [X, 'p'] %}{% if not loop.first %}{% break %}{% endif %}{{ c }}{% endfor %}",
)


def put(operation: str, inner: str) -> str:
    """Return `operation` over `inner` instead of x."""
    return re.sub(r"(?<![\w.'{])x(?!\w)", lambda _: inner, operation)


def _nested(ops: list[str]) -> st.SearchStrategy[str]:
    """One operation, or one over the result of another, up to three deep."""
    one = st.sampled_from(ops)
    return st.lists(one, min_size=1, max_size=3).map(lambda some: _over(some[0], some[1:]))


def _over(operation: str, others: list[str]) -> str:
    for other in others:
        operation = put(operation, f"({other})")
    return operation


def templates(ops: list[str]) -> st.SearchStrategy[str]:
    """Return templates that render each message by an expression over its content, x."""
    body = st.tuples(st.sampled_from(SHAPES), _nested(ops)).map(lambda pair: pair[0].replace("X", pair[1]))
    return body.map(
        lambda text: (
            "{% for m in messages %}{% set x = m.content %}<|{{ m.role }}|>"
            + text
            + "{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
        )
    )
