"""Chat templates that fail, never end or write gigabytes; as a program, it tries them and prints what came of it."""

import json
import re
import resource
import sys
from pathlib import Path

FAILING = {
    "division by zero": "{{ 1/0 }}",
    "a range without measure": "{% for i in range(10**9) %}a{% endfor %}",
    "another file": "{% include 'x' %}",
    "a parent": "{% extends '/etc/passwd' %}",
    "text and number": "{{ 1 + 'a' }}",
    "an attribute of nothing": "{{ a.b.c }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "five thousand brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "half a character": "{{ '\\ud800' }}",
    "a reason of megabytes": "{{ raise_exception('a' * 10**7) }}",
    "a way out of the sandbox": "{{ ''.__class__.__mro__ }}",
    "no Jinja": "{% for %}",
}
WRITING = {
    "a product": "{{ 'a' * 10**9 }}",
    "a product of texts": "{% set n = 10**10 %}{{ messages[0].content * n }}",
    "a list": "{% set l = [0] * 10**10 %}",
    "doubling": (
        "{% set ns = namespace(a='aa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}"
    ),
    "a method": "{{ 'a'.center(10**10) }}",
    "a filter": "{{ 'a'|center(10**10) }}",
    "an old format": "{{ '%10000000000d' % 1 }}",
    "a new format": "{{ '{:10000000000}'.format(1) }}",
    "megabytes": "{{ 'a' * 2000000 }}",
}
ENDLESS = {
    "loops in loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}"
    ),
}
MORE_ENDLESS = {
    "a power": "{% set n = 9**9 %}{{ 9**n }}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "replacing": (
        "{% set ns = namespace(a='aa') %}{% for i in range(60) %}{% set ns.a = ns.a|replace('a','aa') %}{% endfor %}"
    ),
    "filler text": "{{ lipsum(n=10**7) }}",
    "wrapping": "{{ ('ab '*10**7)|wordwrap(1) }}",
}
KINDS = {"failing": FAILING, "writing": WRITING, "endless": ENDLESS, "more_endless": MORE_ENDLESS}


def main(kind: str, tokenizer_path: str) -> None:
    """Resolve each template of a kind as a configured one; print its error, and the memory that all of it took."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    from pairwright.config import TokensConfig
    from pairwright.data.tokens.chat_template import resolve_template
    from pairwright.data.tokens.tokenizer import load_tokenizer
    from pairwright.errors import ConfigError

    tokenizer = load_tokenizer(tokenizer_path)
    found = {}
    for name, template in KINDS[kind].items():
        try:
            resolve_template(tokenizer, TokensConfig(chat_template=template))
            found[name] = ""
        except ConfigError as error:
            found[name] = str(error)
    # Not this process's ru_maxrss, which begins with that of the process that started it.
    (own,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"errors": found, "peak_megabytes": [int(own) >> 10, children >> 10]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
