"""Names of hosts by patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trickle


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web1", ["web1"]),
        ("deploy@web1.example.com", ["deploy@web1.example.com"]),
        ("fe80::1%eth0", ["fe80::1%eth0"]),
        ("web[01-03].example.com", ["web01.example.com", "web02.example.com", "web03.example.com"]),
        ("web[8-11]", ["web8", "web9", "web10", "web11"]),
        ("web[098-101]", ["web098", "web099", "web100", "web101"]),
        ("web[08-10]", ["web08", "web09", "web10"]),
        ("web[0-1]", ["web0", "web1"]),
        ("web[1-2,7,x]", ["web1", "web2", "web7", "webx"]),
        ("[eu,us]-db[1-2]", ["eu-db1", "eu-db2", "us-db1", "us-db2"]),
        ("web[1-2],db1, mail", ["web1", "web2", "db1", "mail"]),
        ("[5]", ["5"]),
        ("db-[eu-west,us-east]", ["db-eu-west", "db-us-east"]),
    ],
)
def test_a_pattern_stands_for_names(pattern: str, names: list[str]) -> None:
    assert trickle.hosts(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "a name is missing"),
        ("web1,,web2", "a name is missing"),
        ("web[1-3", "a bracket is not closed"),
        ("web1-3]", "a bracket is not closed, or one too many"),
        ("web[[1-2]]", "bracket"),
        ("web[]", "'' is not a number, a word, or a range"),
        ("web[1-]", "'1-' is not a number, a word, or a range"),
        ("web[-3]", "'-3' is not"),
        ("web[a-c]", "'a-c' is not"),
        ("web[1..3]", None),
        ("web[a b]", "'a b' is not"),
        ("web[3-1]", "the range 3-1 goes backwards"),
        ("web[1-2,2]", "names 'web2' twice"),
        ("web1,web[1-2]", "names 'web1' twice"),
        ("web[1-1000000000]", "more than 100,000"),
        ("[1-1000][1-1000]", "more than 100,000"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, why: str | None) -> None:
    if why is None:  # a word, if an odd one
        assert len(trickle.hosts(pattern)) == 1
        return
    with pytest.raises(ValueError) as caught:
        trickle.hosts(pattern)
    assert why in str(caught.value) and repr(pattern) in str(caught.value)


@given(st.integers(0, 10**6), st.integers(0, 500), st.integers(0, 8))
def test_ranges_count_and_keep_their_width(first: int, more: int, width: int) -> None:
    names = trickle.hosts(f"n[{first:0{width}}-{first + more}]")

    assert [int(name[1:]) for name in names] == list(range(first, first + more + 1))
    assert all(len(name) - 1 >= width or not f"{first:0{width}}".startswith("0") for name in names)


@given(st.text(max_size=30))
def test_any_text_is_names_or_a_value_error(text: str) -> None:
    try:
        names = trickle.hosts(text)
    except ValueError:
        return
    assert names and all(names) and len(set(names)) == len(names)
