from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.guest.symbols import MAX_INFERRED_SIZE, Symbol, SymbolKind, SymbolTable


def table(*rows: tuple[int, str, str], end: int | None = None, sizes: list[int] | None = None) -> SymbolTable:
    """Rows are (address, letter, name), already in the table's order."""
    return SymbolTable(
        addresses=array("Q", (address for address, _, _ in rows)),
        text=" ".join(name for _, _, name in rows),
        letters="".join(letter for _, letter, _ in rows),
        sizes=None if sizes is None else array("Q", sizes),
        end=None if end is None else Gva(end),
    )


SMALL = table(
    (0x1000, "T", "_text"),
    (0x1000, "t", "first"),
    (0x1040, "t", "init_once"),
    (0x1100, "T", "vfs_read"),
    (0x1200, "t", "init_once"),
    (0x2000, "D", "init_task"),
    (0x2100, "W", "arch_hook"),
    (0x3000, "B", "_end"),
    end=0x3000,
)


def symbol(name: str, gva: int, size: int, kind: SymbolKind, *, inferred: bool = True) -> Symbol:
    return Symbol(name, Gva(gva), size, inferred, kind)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_text", [symbol("_text", 0x1000, 0x40, SymbolKind.CODE)]),
        ("first", [symbol("first", 0x1000, 0x40, SymbolKind.CODE)]),
        (
            "init_once",
            [symbol("init_once", 0x1040, 0xC0, SymbolKind.CODE), symbol("init_once", 0x1200, 0xE00, SymbolKind.CODE)],
        ),
        ("init_task", [symbol("init_task", 0x2000, 0x100, SymbolKind.DATA)]),
        ("arch_hook", [symbol("arch_hook", 0x2100, 0xF00, SymbolKind.WEAK)]),
        ("_end", [symbol("_end", 0x3000, 0, SymbolKind.BSS)]),
        ("init", []),
        ("", []),
        ("_text first", []),
    ],
)
def test_every_symbol_of_a_name_is_found_in_order(name: str, expected: list[Symbol]) -> None:
    assert list(SMALL.named(name)) == expected
    assert (name in SMALL) == bool(expected)


def test_iteration_gives_each_symbol_once() -> None:
    assert [(found.name, found.gva) for found in SMALL] == list(zip(SMALL.names, SMALL.addresses, strict=True))
    assert len(SMALL) == 8
    assert list(table()) == []
    assert len(table()) == 0


def test_sizes_of_the_source_win_over_distances() -> None:
    sized = table((0x10, "t", "a"), (0x20, "t", "b"), (0x30, "t", "c"), end=0x38, sizes=[9, 0, 4])
    assert [(found.size, found.size_inferred) for found in sized] == [(9, False), (16, True), (4, False)]


def test_an_inferred_size_stops_at_the_end_and_at_holes() -> None:
    gap = table((0, "t", "a"), (MAX_INFERRED_SIZE, "t", "b"), (2 * MAX_INFERRED_SIZE + 1, "t", "c"))
    assert [found.size for found in gap] == [MAX_INFERRED_SIZE, 0, 0]
    ended = table((0x10, "t", "a"), (0x20, "t", "beyond"), (0x28, "t", "further"), end=0x18)
    assert [found.size for found in ended] == [8, 8, 0]


@pytest.mark.parametrize(
    ("gva", "expected"),
    [
        (0xFFF, None),
        (0x1000, ("_text", 0)),
        (0x103F, ("_text", 0x3F)),
        (0x1040, ("init_once", 0)),
        (0x1FFF, ("init_once", 0xDFF)),
        (0x2101, ("arch_hook", 1)),
        (0x3000, ("_end", 0)),
        (0x3001, None),
        ((1 << 64) - 1, None),
    ],
)
def test_the_symbol_that_covers_an_address(gva: int, expected: tuple[str, int] | None) -> None:
    found = SMALL.covering(Gva(gva))
    assert (found and (found[0].name, found[1])) == expected


def test_of_several_symbols_at_one_address_the_first_global_one_answers() -> None:
    aliases = table((0x10, "t", "a"), (0x10, "T", "c"), (0x10, "T", "d"), (0x20, "t", "e"))
    found = aliases.covering(Gva(0x18))
    assert found is not None
    assert found[0].name == "c"


def test_an_address_after_a_sized_symbol_belongs_to_none() -> None:
    sized = table((0x10, "t", "a"), (0x20, "t", "b"), sizes=[4, 4])
    assert sized.covering(Gva(0x13)) is not None
    assert sized.covering(Gva(0x14)) is None


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["_text", "first", "init_once", "vfs_read", "init_once", "init_task", "arch_hook", "_end"]),
        ("init_*", ["init_once", "init_once", "init_task"]),
        ("*_once", ["init_once", "init_once"]),
        ("*t*t*", ["_text", "init_task"]),
        ("vfs_read", ["vfs_read"]),
        ("vfs_rea*d", ["vfs_read"]),
        ("vfs_re?d", []),
        ("vfs_re[a]d", []),
        ("*nothing*", []),
        ("", []),
    ],
)
def test_a_glob_matches_whole_names_and_only_the_star_is_special(pattern: str, names: list[str]) -> None:
    assert [found.name for found in SMALL.glob(pattern)] == names


def test_a_name_may_hold_what_a_pattern_language_would_take_for_its_own() -> None:
    mangled = table((1, "t", "?init@@YAXXZ"), (2, "t", "foo.cold"), (3, "t", "fooXcold"), (4, "t", "a+b$1"))
    assert [found.name for found in mangled.glob("?init*")] == ["?init@@YAXXZ"]
    assert [found.name for found in mangled.glob("foo.c*")] == ["foo.cold"]
    assert [found.name for found in mangled.glob("*+b$*")] == ["a+b$1"]


def test_a_glob_of_many_stars_does_not_backtrack() -> None:
    long = table((1, "t", "a" * 500), (2, "t", "a" * 500 + "b"))
    assert [found.gva for found in long.glob("*a" * 100 + "*b")] == [2]


def naive_glob(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return naive_glob(pattern[1:], name) or (bool(name) and naive_glob(pattern, name[1:]))
    return name[:1] == pattern[0] and naive_glob(pattern[1:], name[1:])


@given(st.text("ab*", max_size=7), st.lists(st.text("ab", min_size=1, max_size=7), max_size=8))
def test_glob_against_its_definition(pattern: str, names: list[str]) -> None:
    symbols = table(*((index, "t", name) for index, name in enumerate(names)))
    assert [found.name for found in symbols.glob(pattern)] == [name for name in names if naive_glob(pattern, name)]


rows = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["a", "b", "c", "d"]), st.sampled_from("tTdD")), max_size=12
).map(sorted)


@given(rows, st.one_of(st.none(), st.integers(0, 50)), st.integers(0, 60))
def test_look_ups_against_a_scan(entries: list[tuple[int, str, str]], end: int | None, gva: int) -> None:
    symbols = table(*((address, letter, name) for address, name, letter in entries), end=end)
    for name in "abcd":
        assert [found.gva for found in symbols.named(name)] == [row[0] for row in entries if row[1] == name]
    for found in symbols:
        above = [row[0] for row in entries if row[0] > found.gva] + (
            [end] if end is not None and end >= found.gva else []
        )
        assert found.size == min(above, default=found.gva) - found.gva
    covering = symbols.covering(Gva(gva))
    candidates = [found for found in symbols if found.gva == gva or found.gva <= gva < found.gva + found.size]
    assert (covering is None) == (not candidates)
    if covering is not None:
        assert covering[0] in candidates
        assert covering[0].gva + covering[1] == gva


@pytest.mark.parametrize(
    ("letter", "kind"),
    [
        ("t", SymbolKind.CODE),
        ("T", SymbolKind.CODE),
        ("i", SymbolKind.CODE),
        ("d", SymbolKind.DATA),
        ("R", SymbolKind.READ_ONLY),
        ("b", SymbolKind.BSS),
        ("A", SymbolKind.ABSOLUTE),
        ("w", SymbolKind.WEAK),
        ("V", SymbolKind.WEAK),
        ("?", SymbolKind.OTHER),
        ("u", SymbolKind.OTHER),
    ],
)
def test_kinds_of_letters(letter: str, kind: SymbolKind) -> None:
    assert [found.kind for found in table((1, letter, "a"))] == [kind]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vfs_raed", "vfs_read"),
        ("__vfs_read", "vfs_read"),
        ("VFS_READ", "vfs_read"),
        ("init_tusk", "init_task"),
        ("text", "_text"),
        ("vfs_read", None),
        ("entirely_different", None),
        ("", None),
    ],
)
def test_suggestions(name: str, expected: str | None) -> None:
    assert SMALL.suggest(name) == expected


def test_the_same_word_with_other_underscores_wins_over_a_similar_one() -> None:
    assert table((1, "t", "text_pokes"), (2, "t", "__text_poke"), (3, "t", "_text_poke")).suggest("text_poke") == (
        "_text_poke"
    )
