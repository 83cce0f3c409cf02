"""The page on errors says what the code does."""

from tests import errors_page
from trickle._diagnosis import causes


def test_the_table_of_reasons_is_that_of_the_code() -> None:
    page = errors_page.PAGE.read_text(encoding="utf-8")

    assert page.count(errors_page.HEAD) == 1
    assert page == errors_page.with_table(page), "run python -m tests.errors_page"
    assert {f"| {cause.reason} | " for cause in causes()} == {
        line[: line.index(" | ") + 3] for line in errors_page.table().splitlines()[2:]
    }


def test_a_row_that_is_not_the_codes_is_noticed() -> None:
    page = errors_page.PAGE.read_text(encoding="utf-8")

    assert errors_page.with_table(page.replace("| killed | the tunnel", "| killed | nobody")) == page
