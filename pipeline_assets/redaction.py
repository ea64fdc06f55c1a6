"""What may not be shown, and how it is masked: known secret values, and what looks like one. Imports nothing of ours.

It has to be known in the whole process which values are secret: a value that one step fetches turns up in what the JVM
prints, in another library's log record, in the error of a later step. So there is one set of them, that any thread may
add to and read.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "*********"

# Fewer characters stand in any text by chance, and are found by trying all of them anyway.
_MIN_LENGTH = 4
# Below this length a value is masked where it stands alone, not inside of a longer word.
_MIN_LENGTH_INSIDE = 8
_TRIVIAL = frozenset({"true", "false", "null", "none"})
# The letters and digits of an escape belong to no word: %3D, \n, \u003d.
_NO_WORD_BEFORE = r"(?P<before>(?<![A-Za-z0-9])|%[0-9A-Fa-f]{2}|\\[bfnrt]|\\u[0-9A-Fa-f]{4})"
# A process that lives for months sees a token with each look at its streams.
_RETIRED_KEPT = 32

# What the name of a secret contains. Also for Java's regular expressions: Spark redacts by it. TEXT_PATTERN looks for
# the first letter of each.
NAME_PATTERN = (
    r"passw(?:or)?d|passphrase|pwd|secret|token(?!i[sz])|credential(?!s?[._-]?provider)|jaas[._-]?config"
    r"|(?:access|account|api|auth|encryption|keystore|master|private|shared|signing)[._-]?key|authorization|signature"
)
_SECRET_NAME = re.compile(NAME_PATTERN, re.IGNORECASE)
# A name that ends so says where a secret is, or what kind it is of.
_ABOUT_A_SECRET = re.compile(
    r"(?:^|[a-z._-])(?:algorithm|binding|class|count|enabled|endpoint|error|exception|expiry|file|length|location|mode|name|path|pattern"
    r"|policy|provider|ref|reference|required|ttl|type|uri|url|version)$"
)

# Of a header, where more follows than words do: "authorization: denied by policy" is none.
_OTHER_SCHEME = r"""(?:(?<=authorization:[ ])|(?<=authorization[:=])) [a-z][\w-]{0,30}[ ]{1,4}
    (?=[^\s"'&;,(){}\[\]|<>\\]{8}) (?=[^\s"'&;,(){}\[\]|<>\\]{0,200}\d | [a-z+/=_-]{20})"""

# A name, then its value: password=x, "secret.key": "x", fs.s3a.access.key -> x, PASSWORD 'x'. What stands before the
# part of the name that tells is looked at afterwards: a pattern that starts with it takes quadratic time.
_ASSIGNED = re.compile(
    rf"""(?ix)
    (?P<name> (?:{NAME_PATTERN}) [\w.$-]{{0,60}} )
    (?P<separator> (?:\\{{0,8}}["'])? [ \t]{{0,4}} (?: = | :(?!/) | -> ) [ \t]{{0,4}} (?:Some\()? | [ \t]{{1,4}} (?=') )
    (?P<value>
        "(?:[^"\\\n]|\\.)*"?
      | '(?:[^'\\\n]|\\.|'')*'?
      | (?P<escaped>\\{{1,8}}["']) (?:(?!(?P=escaped))[^\n])*
      | (?:(?:basic|bearer|digest|negotiate)[ ]+ | {_OTHER_SCHEME})? [^\s"'&;,(){{}}\[\]|<>\\]+
    )
    """
)
_NAME_BEFORE = re.compile(r"[\w.$-]*\Z")
_JAVA_CLASS = re.compile(r"\w+(?:\.\w+)+")
_PROSE = re.compile(r"[a-z]+", re.IGNORECASE)
_REFERENCE = re.compile(r"""\\*["']?(?:env|file|vault):""")
# What may follow the name of a column or a field: its type in a schema.
_NO_SECRET = re.compile(
    r"""(?ix) ["']? (?: true | false | null | none | n/a | \*+
    | string | binary | boolean | byte | tinyint | smallint | short | int | integer | bigint | long | float | double
    | date | timestamp(?:_ntz|_ltz)? | interval | void | variant | array | map | struct | decimal | (?:var)?char
    ) ["']?"""
)


def _assigned(match: re.Match[str]) -> str:
    whole, value, separator = match[0], match["value"], match["separator"]
    text = match.string
    start = match.start()
    before = _NAME_BEFORE.search(text, max(0, start - 100), start)
    name_start = before.start() if before else start
    preceding = text[name_start - 1 : name_start]
    follows = text[match.end() : match.end() + 2]
    if _REFERENCE.match(value) or _NO_SECRET.fullmatch(value) or not any(map(str.isalnum, value)):
        return whole
    if not is_secret_name(text[name_start : match.end("name")]):
        return whole
    if ":" in separator and (
        # The pointer to a key or the reference to a field, and then what is wrong with it.
        preceding in ("/", "#") or (_PROSE.fullmatch(value) and re.match(r" [a-z]", follows, re.IGNORECASE))
    ):
        return whole
    if "jaas" in match["name"].lower() and _JAVA_CLASS.fullmatch(value):
        return whole  # the login module; its options are to come
    if separator.isspace() and not re.search(r"passw|pwd", match["name"], re.IGNORECASE):
        return whole
    opening = match["escaped"] or (value[0] if value[0] in "\"'" else "")
    closing = opening if len(opening) == 1 else ""
    return f"{text[start : match.start('value')]}{opening}{MASK}{closing}"


def _masked(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    return f"{match.string[match.start() : start]}{MASK}{match.string[end : match.end()]}"


@dataclass(frozen=True)
class _Shape:
    """What secrets of one kind look like. Texts without any of ``hints`` (in lower case) are not searched."""

    name: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    masked: Callable[[re.Match[str]], str] = _masked

    def redact(self, text: str, lower: str) -> str:
        return self.pattern.sub(self.masked, text) if self._hinted(lower) else text

    def is_in(self, text: str, lower: str) -> bool:
        return self._hinted(lower) and any(
            self.masked(match) != match[0] for match in self.pattern.finditer(text) if MASK not in match[0]
        )

    def _hinted(self, lower: str) -> bool:
        return any(hint in lower for hint in self.hints)


# To the last @ before the path: a password may hold one.
_URL_PASSWORD = re.compile(r"""://[^\s/:@"'<>]{0,200}:(?P<secret>[^\s/"'<>]+)@""")

# No pattern may take more than linear time: each starts with a text that does not overlap itself or is bounded in
# length, and none can match the same characters in two ways.
_SHAPES = (
    _Shape(
        "private key",
        ("private key-----",),
        re.compile(
            r"-----BEGIN[A-Z0-9 ]{0,40}PRIVATE KEY-----(?P<secret>(?:\\{1,8}[rn]|\s)*(?:Proc-Type|[A-Za-z0-9+/=]{16})"
            r"(?:\s*(?!-----)[A-Za-z0-9+/=\\:,.-])*)\s*"
            r"(?:-----END[A-Z0-9 ]{0,40}-----)?"
        ),
    ),
    _Shape(
        "JAAS config",
        ("loginmodule",),
        re.compile(r"(?i)LoginModule\s{1,4}(?:required|requisite|sufficient|optional)\s(?P<secret>[^;\n]*)"),
    ),
    _Shape(
        "user and password in a URL",
        ("://",),
        _URL_PASSWORD,
    ),
    _Shape(
        "JWT",
        ("eyj",),
        re.compile(r"(?<![\w-])(?P<secret>eyJ[\w-]{8,}\.eyJ[\w-]{2,}(?:\.[\w-]*)?)", re.ASCII),
    ),
    _Shape(
        "AWS access key",
        ("akia", "asia"),
        re.compile(r"(?<![A-Za-z0-9])(?P<secret>A[KS]IA[A-Z0-9]{16})(?![A-Za-z0-9])"),
    ),
    _Shape(
        "service token",  # of Vault, GitHub, GitLab, Slack, Google
        ("hvs.", "hvb.", "hvr.", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "aiza"),
        re.compile(
            r"(?<![\w-])(?P<secret>hv[sbr]\.[\w-]{20,}|gh[opusr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
            r"|xox[abeprs]-[\w-]{10,}|AIza[\w-]{35})",
            re.ASCII,
        ),
    ),
    _Shape(
        "bearer token",
        ("bearer",),
        re.compile(r"(?i)\bbearer\s{1,4}(?P<secret>(?=[A-Za-z._~+/-]{0,200}\d)[A-Za-z0-9._~+/-]{8,}=*)"),
    ),
    _Shape(
        "secret by its name",
        ("passw", "passphrase", "pwd", "secret", "token", "credential", "jaas", "key", "authorization", "signature"),
        _ASSIGNED,
        _assigned,
    ),
)


# The same as far as one regular expression tells, for Spark, which masks the whole match. Spark searches the text of
# each plan by it, and again whenever it adapts one: most places are passed over by their letter.
TEXT_PATTERN = (
    rf"(?i)(?=[acejklmpst:])(?:(?:{NAME_PATTERN})[\w.$-]{{0,60}}[\"']?[ \t]{{0,4}}(?:=|:(?!/)|->)[ \t]{{0,4}}"
    r"(?!(?:string|binary|boolean|(?:tiny|small|big)?int|float|double|date|timestamp|array|map|struct|decimal)\b)"
    r"""(?:"[^"\n]*"|'[^'\n]*'(?:'[^'\n]*'){0,20}|[^\s"'&;,(){}\[\]|<>*]+)"""
    rf"|{_URL_PASSWORD.pattern}|LoginModule\s+(?:required|requisite|sufficient|optional)\s[^;\n]*)".replace(
        "?P<secret>", ""
    )
)


class _Known:
    """Values that are secret, in every form in which they may turn up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, frozenset[str]] = {}
        # In how many values' forms each is.
        self._uses: Counter[str] = Counter()
        self._retired: dict[str, None] = {}
        # Replaced as a whole when there is another value: readers need no lock, and are many.
        self._inside: tuple[str, ...] = ()
        self._alone: re.Pattern[str] | None = None
        self._alone_forms: frozenset[str] = frozenset()

    def add(self, value: str) -> None:
        with self._lock:
            self._retired.pop(value, None)
            if value in self._forms:
                return
            forms = frozenset(form for part in _parts(value) for form in _forms(part))
            self._forms[value] = forms
            self._show(added={form for form in forms if not self._uses[form]}, removed=set())
            self._uses.update(forms)

    def retire(self, value: str) -> None:
        with self._lock:
            if value not in self._forms:
                return
            self._retired.pop(value, None)
            self._retired[value] = None
            if len(self._retired) > _RETIRED_KEPT:
                oldest = next(iter(self._retired))
                del self._retired[oldest]
                forms = self._forms.pop(oldest)
                self._uses -= Counter(forms)
                self._show(added=set(), removed={form for form in forms if form not in self._uses})

    def _show(self, added: set[str], removed: set[str]) -> None:
        """Have readers look for ``added``, and no longer for ``removed``."""
        inside = [form for form in self._inside if form not in removed]
        for form in added:
            if len(form) >= _MIN_LENGTH_INSIDE:
                # The longest first: a value may be the start of another.
                insort(inside, form, key=lambda form: (-len(form), form))
        self._inside = tuple(inside)
        alone = self._alone_forms - removed | {form for form in added if len(form) < _MIN_LENGTH_INSIDE}
        if alone != self._alone_forms:
            self._alone_forms = alone
            listed = "|".join(re.escape(form) for form in sorted(alone, key=len, reverse=True))
            self._alone = re.compile(rf"{_NO_WORD_BEFORE}(?:{listed})(?![A-Za-z0-9])") if alone else None

    def redact(self, text: str) -> str:
        for form in self._inside:
            if form in text:
                text = text.replace(form, MASK)
        return self._alone.sub(rf"\g<before>{MASK}", text) if self._alone is not None else text


_known = _Known()


def _parts(value: str) -> Iterator[str]:
    """Yield the value, its lines (logs are read line by line), and the secrets in a URL or a JAAS config."""
    lines = [line.strip() for line in value.splitlines()]
    parts = [value, value.strip(), *(line for line in lines if len(line) >= _MIN_LENGTH_INSIDE)]
    parts += [match["secret"] for match in _URL_PASSWORD.finditer(value)]
    for match in _ASSIGNED.finditer(value):
        if _assigned(match) != match[0]:
            text = match["value"].removeprefix(match["escaped"] or "")
            unquoted = text[1:].removesuffix(text[0]) if text[:1] in ("'", '"') else text
            parts += [unquoted, re.sub(r"\\(.)", r"\1", unquoted)]
    for part in dict.fromkeys(parts):
        if len(part) >= _MIN_LENGTH and part.lower() not in _TRIVIAL and not part.startswith("-----"):
            yield part


def _forms(value: str) -> Iterator[str]:
    """Yield ``value`` as it is, and as URLs, base64, JSON, Java, Python, SQL and HTML write it."""
    data = value.encode("utf-8", "surrogateescape")
    in_url = {quote(data, safe=""), quote(data), quote_plus(data)}
    # Java's URLEncoder leaves another character as it is than Python does.
    in_url |= {of(data, safe="*").replace("~", "%7E") for of in (quote, quote_plus)}
    in_base64 = {base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()}
    in_json = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    yield value
    yield from in_url
    yield from (re.sub("%..", lambda escape: escape[0].lower(), text) for text in in_url)
    yield from in_base64
    yield from (text.rstrip("=") for text in in_base64)
    yield from in_json
    yield from (text.replace("/", "\\/") for text in in_json)
    yield from (json.dumps(text)[1:-1] for text in in_json)  # JSON in JSON
    yield re.sub(r"([=:#!])", r"\\\1", json.dumps(value)[1:-1].replace('\\"', '"'))  # a properties file
    yield repr(value)[1:-1]
    yield value.replace("'", "''")
    yield value.replace("'", "\\'")
    yield html.escape(value)


def register_secret(value: str) -> None:
    """Have ``redact`` mask ``value`` from now on, in this process.

    Also its URL-encoded, base64, JSON- and Java-escaped forms, and of a value of several lines each line of at least 8
    characters. A value of less than 4 characters, or ``true``, ``false``, ``null``, ``none``, is not taken: it is in
    any text by chance. One of less than 8 is masked where it stands alone, not inside of a word.
    """
    _known.add(value)


def retire_secret(value: str) -> None:
    """Take note that ``value`` is used no more, as what Vault has revoked.

    It is masked for a while still, as texts with it may be on their way: until 32 others have been retired after it.
    One that is registered again is a secret as before.
    """
    _known.retire(value)


def redact(text: str) -> str:
    """Return ``text`` with ``*********`` in the place of secrets.

    These are the values that were registered, and what looks like one: by the name that it is given to
    (``password=x``, ``"secret.key": "x"``), or by its shape (see ``secret_shapes``). References such as
    ``vault:secret/data/postgres#password`` stay. Takes time linear in the length of the text.
    """
    text = _known.redact(text)
    lower = text.lower()
    for shape in _SHAPES:
        text = shape.redact(text, lower)
    return text


def redact_field(name: str, text: str) -> str:
    """Return ``text`` without a secret, whether it stands in it or is what the column's ``name`` says."""
    return MASK if is_secret_name(name) else redact(text)


def redact_data(data: Any) -> Any:
    """Return JSON-like ``data`` with its texts redacted, and its values under the names of secrets masked."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {
            key: MASK
            if isinstance(value, str) and value and is_secret_name(str(key)) and not _REFERENCE.match(value)
            else redact_data(value)
            for key, value in data.items()
        }
    if isinstance(data, list | tuple):
        return [redact_data(value) for value in data]
    return data


def is_secret_name(key: str) -> bool:
    """Whether ``key`` (of an option, a config, a header) names a secret: ``password``, ``fs.s3a.secret.key``.

    A ``key`` alone does not, as records, joins and partitions have keys too, and neither does a name that tells where
    a secret is (``passwordFile``, ``ssl.truststore.location``) or what it is like.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    return _SECRET_NAME.search(key) is not None and _ABOUT_A_SECRET.search(spaced.lower()) is None


def secret_shapes(text: str) -> tuple[str, ...]:
    """Return the names of the kinds of secrets that ``text`` seems to hold, the registered values apart."""
    lower = text.lower()
    return tuple(shape.name for shape in _SHAPES if shape.is_in(text, lower))
