"""Policies made up at random: as lists of words that the grammar allows, and laid out in any way it allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["any_words", "laid_out", "policies", "statements"]

Words: TypeAlias = list[str]

NAMES = ("kernel", "nt", "write", "x86_64", "a-b", "old", "cr4", "smep", "_", "tokernel", "denying")
# Keywords, as names of places and modules.
PLACE_NAMES = (*NAMES, "size", "test", "on", "restore", "deny", "until")
NUMBERS = ("0", "7", "4096", "0x10_0000", "4K", "1M", "0xFFFF_ffff_8100_0000", "007", "0x10000000000000000")
TEXTS = ('""', '"why"', '"a # b"', '"{ } é 漢"', '"it\'s"', '"deny write to"')
LABELS = ("guard:", "kernel-text:", "on:", "deny:")
SYMBOLS = ("kernel:x", "kernel:sys_call_table", "nt:?f@@YAXXZ", "kernel:ftrace_*", "kernel:a.b.0", "on:deny")
SECTIONS = (".text", ".init.text", ".note.gnu.build-id")
DATES = ("2027-06-30", "2000-02-29")
DURATIONS = ("5s", "500ms", "2m", "1h")
SIGNS = (",", "=", "==", "!=", "<=", "=>", "..", "|", "&", "~", "(", ")", "{", "}", "/", "+", "-")
KEYWORDS = (
    *("policy", "version", "for", "mode", "import", "let", "to", "of", "on", "when", "inject", "pin", "retry", "then"),
    *(
        "from",
        "by",
        "severity",
        "tag",
        "because",
        "owner",
        "at",
        "most",
        "per",
        "overriding",
        "except",
        "until",
        "size",
    ),
    *("module", "physical", "virtual", "or", "and", "not", "in", "watch", "every", "test", "with", "restore"),
    *("allow", "log", "skip", "deny", "crash"),
)

BLANKS = (" ", "  ", "\n", "\n    ", "\t", "\r\n", " # a comment\n", "\n# {\n", "\n\n")


def _one(*options: str) -> SearchStrategy[Words]:
    return st.sampled_from(options).map(lambda word: [word])


def _all(*parts: SearchStrategy[Words] | str) -> SearchStrategy[Words]:
    """The parts one behind the other."""
    strategies = [st.just(part.split()) if isinstance(part, str) else part for part in parts]
    return st.tuples(*strategies).map(lambda lists: [word for words in lists for word in words])


def _maybe(part: SearchStrategy[Words]) -> SearchStrategy[Words]:
    return st.just([]) | part


def _joined(part: SearchStrategy[Words], sign: str, largest: int = 3) -> SearchStrategy[Words]:
    """One or more parts with a sign between."""
    return st.lists(part, min_size=1, max_size=largest).map(
        lambda parts: [word for index, words in enumerate(parts) for word in ([sign, *words] if index else words)]
    )


name, place_name, number, text = _one(*NAMES), _one(*PLACE_NAMES), _one(*NUMBERS), _one(*TEXTS)
section = _one(*SECTIONS)
extent = _all(number, "..", number) | _all(number, "size", number)
place = (
    _all(place_name, section | text)
    | _all("module", place_name | text, section | text)
    | _all(_one(*SYMBOLS), _maybe(_all(_one("+", "-"), number)), _maybe(_all("size", number)))
    | _all("physical", extent)
    | _all("virtual", extent)
    | number
    | place_name
)
places = _joined(place, ",")

bits = st.recursive(
    name | number,
    lambda inner: (
        _all("(", _joined(inner, "|"), ")")
        | _all("~", _all("(", inner, ")"))
        | _all(name, "(", inner, ")")
        | _joined(_all("(", inner, ")"), "&")
    ),
    max_leaves=4,
)
comparison = _all(bits, _one("==", "!=", "<", "<=", ">", ">="), bits) | _all(bits, "in", place) | bits
condition = st.recursive(
    comparison,
    lambda inner: (
        _all("not", "(", inner, ")")
        | _joined(_all("(", inner, ")"), "and")
        | _joined(_all("(", inner, ")"), "or")
        | _all(comparison, "and", comparison, "or", "not", comparison)
    ),
    max_leaves=4,
)

plain_effect = _one("allow", "log", "skip", "deny", "crash")
effect = (
    plain_effect
    | _all("inject", name | number)
    | _all("pin", _joined(name, "|"))
    | _all("retry", number, "then", plain_effect)
)
origin, guard = _all("from", places), _all("when", condition)
owner, until = _all("owner", text), _all("until", _one(*DATES))
exemption = _all(
    "except",
    origin | guard | _all(origin, guard),
    "because",
    text,
    st.just([]) | owner | until | _all(owner, until) | _all(until, owner),
)
label = _maybe(_one(*LABELS))
event = _all(
    name, st.lists(name | number | _all(number, "/", number), max_size=2).map(lambda p: [w for q in p for w in q])
)


@st.composite
def clauses(draw: st.DrawFn, guarded: bool) -> Words:
    """Clauses, each that may stand once at most once, in any order that the grammar has."""
    singles = [origin, _all("by", name), _all("severity", name), _all("because", text), _all("mode", name)]
    singles += [_all("at most", number, "per", name)] + ([guard] if guarded else [])
    chosen = draw(st.lists(st.sampled_from(range(len(singles))), unique=True, max_size=3))
    parts = [draw(singles[index]) for index in chosen]
    parts += draw(st.lists(_all("tag", text) | _all("overriding", text), max_size=2))
    parts = draw(st.permutations(parts))
    cut = draw(st.integers(0, len(parts)))
    owners = draw(st.sampled_from([[], [["owner", '"them"']]]))
    exemptions = draw(st.lists(exemption, max_size=2))
    return [word for part in [*parts[:cut], *owners, *exemptions, *parts[cut:]] for word in part]


settings = _maybe(_all("with", _joined(_all(name, "=", bits), ",")))
case = _all(name, place, _maybe(_all("from", place)), settings, "=>", effect) | _all(
    "on", event, settings, "=>", effect
)
statements = (
    _all("import", text)
    | _all("let", place_name, "=", places)
    | _all(label, effect, _joined(name, ","), _one("to", "of"), places, clauses(guarded=True))
    | _all(label, "on", event, _maybe(guard), effect, clauses(guarded=False))
    | _all(label, "watch", places, "every", _one(*DURATIONS), _maybe(_one("restore")), clauses(guarded=True))
    | _all("test", text, "{", st.lists(case, max_size=3).map(lambda cases: [w for c in cases for w in c]), "}")
)
header = _all(
    "policy",
    text,
    st.permutations([["version", "2"], ["for", "linux", "x86_64"], ["mode", "monitor"]]).map(
        lambda parts: [word for part in parts[:2] for word in part]
    ),
)
policies = _all(_maybe(header), st.lists(statements, min_size=1, max_size=5).map(lambda s: [w for t in s for w in t]))
"""Whole policies as lists of words, each right."""

any_words = st.lists(
    st.sampled_from([*KEYWORDS, *NAMES, *NUMBERS, *TEXTS, *LABELS, *SYMBOLS, *SECTIONS, *DATES, *DURATIONS, *SIGNS])
    | st.sampled_from(['"', "'", "é", "\x1b", ";", "kernel.text", "12ab", "&&", ":", "dney"]),
    max_size=30,
)
"""Words in any order, nearly always wrong."""


@st.composite
def laid_out(draw: st.DrawFn, words: SearchStrategy[Words], blanks: tuple[str, ...] = BLANKS) -> str:
    """The words with blanks, line breaks and comments between them."""
    chosen = draw(words)
    separators = draw(st.lists(st.sampled_from(blanks), min_size=len(chosen), max_size=len(chosen)))
    return "".join(word + blank for word, blank in zip(chosen, separators, strict=True))
