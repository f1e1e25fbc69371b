"""What must not stand in a log: keys, and what tells more of a person than an operator needs."""

import re
from ipaddress import ip_network
from math import isfinite

MAX_NAME = 256
MAX_TEXT = 8_192
"""Characters of a name, and of anything longer: a message, a trace of calls."""
MAX_ITEMS = 64
MAX_DEPTH = 8
SHORT = 8
"""No text of so few characters is a key, or holds one."""
HIDDEN = "[redacted]"

IPV4_PREFIX, IPV6_PREFIX = 24, 48
DOTS = 3

SECRETS = re.compile(
    r"""
    (?P<name> \b (?:bearer|basic) \s+ (?=[\w.~+/=-]{8})            # Authorization
      | (?:authorization|api[_-]?key|access[_-]?token|password|passwd|secret|signature)
        ["']? \s* [=:] \s* ["']? (?!\s*(?:bearer|basic)\b) (?=[^\s"'&,;]{6})
      | ://                                                        # user and password in a URL
        (?= [^/\s:@]* : [^/\s@]+ @ ) )
    (?: (?<=://) [^/\s:@]* : [^/\s@]+ (?=@) | (?<!://) [^\s"'&,;]+ )
    | \b (?: my-[\w-]{32,}                                         # our own keys
      | sk-[\w-]{8,} | hf_\w{16,} | (?:AKIA|ASIA)[A-Z0-9]{16} )
    """,
    re.VERBOSE | re.IGNORECASE,
)

SIGNS = (
    *("my-", "sk-", "hf_", "akia", "asia", "://"),
    *("bearer", "basic", "auth", "key", "token", "pass", "secret", "signature"),
)
"""One of them is in every text that the pattern finds something in, and looking for them costs a tenth."""


def scrubbed(text: str) -> str:
    """The text without what looks like a key or a password: ours, OpenAI's, Hugging Face's, Amazon's, and in URLs."""
    if len(text) <= SHORT:
        return text
    low = text.lower()
    for sign in SIGNS:
        if sign in low:
            break
    else:
        return text
    return SECRETS.sub(lambda match: (match["name"] or "") + HIDDEN, text)


def bounded(text: str, most: int) -> str:
    """The beginning of a text that is too long, and how long it was."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def clean(value: object, most: int = MAX_NAME, depth: int = MAX_DEPTH) -> object:
    """A value as it may be told: without keys, and no longer, wider or deeper than anybody wants to read."""
    if isinstance(value, str):
        # cut first: nobody shall make us search megabytes; a key that is cut in two is none any more
        return value if len(value) <= SHORT else scrubbed(bounded(value, most))
    if isinstance(value, float):
        return value if isfinite(value) else str(value)  # JSON has no other numbers
    if isinstance(value, (list, tuple)):
        items = value[:MAX_ITEMS] if depth else ()
        return [clean(item, most, depth - 1) for item in items]
    if isinstance(value, dict):
        items = tuple(value.items())[:MAX_ITEMS] if depth else ()
        return {clean(str(name), MAX_NAME, 0): clean(item, most, depth - 1) for name, item in items}
    return value


def network_of(address: str) -> str:
    """The network that an address belongs to, by which nobody is known: 203.0.113.0 of 203.0.113.77."""
    first, dot, last = address.rpartition(".")
    if dot and last.isdecimal() and first.count(".") == DOTS - 1 and ":" not in first:
        return f"{first}.0"  # a twentieth of what the library takes
    try:
        is_v6 = ":" in address
        network = ip_network((address.partition("%")[0], IPV6_PREFIX if is_v6 else IPV4_PREFIX), strict=False)
    except ValueError:
        return HIDDEN
    return str(network.network_address)
