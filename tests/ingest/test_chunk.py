"""Passages lose nothing, exceed nothing and know where they come from."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.common.errors import InvalidArgument
from services.ingest import chunk as chunk_module
from services.ingest.chunk import CHARS_PER_TOKEN_MAX, Chunk, Format, PageText, chunk, iterate_chunks
from services.ingest.prepare_model import default_folder


def words(text: str) -> int:
    return len(text.split())


def split(*texts: str, form: Format = "text", max_tokens: int = 16, overlap: int = 4) -> list[Chunk]:
    pages = [PageText(page=number, text=text) for number, text in enumerate(texts, start=1)]
    return chunk(pages, count_tokens=words, max_tokens=max_tokens, overlap=overlap, form=form)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = Tokenizer.from_file(str(default_folder() / "tokenizer.json"))
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


TEXTS = st.one_of(
    st.text(max_size=600),
    st.lists(
        st.sampled_from(
            ["alpha", "beta gamma.", "\n\n", "# Head\n", "* item\n", "x" * 120, "漢字", "```\n", " ", "é́"]
        ),
        max_size=120,
    ).map(" ".join),
    st.text(alphabet="ab\n #", max_size=2000),
)


@pytest.mark.parametrize("form", ["text", "markdown"])
@given(texts=st.lists(TEXTS, max_size=3), overlap=st.sampled_from([0, 3, 9]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_character_is_lost_and_no_passage_is_too_long(
    tokenizer: Tokenizer, form: Format, texts: list[str], overlap: int
) -> None:
    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    def starts(text: str) -> list[int]:
        return [begin for begin, _end in tokenizer.encode(text, add_special_tokens=False).offsets]

    pages = [PageText(page=number, text=text) for number, text in enumerate(texts, start=1)]
    chunks = chunk(pages, count_tokens=count, max_tokens=24, overlap=overlap, form=form, token_starts=starts)
    # One look at each block says the same as counting every candidate anew.
    assert chunks == chunk(pages, count_tokens=count, max_tokens=24, overlap=overlap, form=form)
    assert [entry.index for entry in chunks] == list(range(len(chunks)))
    for page in pages:
        covered = 0
        for entry in (entry for entry in chunks if entry.page == page.page):
            assert page.text[entry.offset : entry.offset + len(entry.text)] == entry.text
            assert not page.text[covered : entry.offset].strip()
            assert count(entry.text) <= 24
            assert len(entry.text) <= 24 * CHARS_PER_TOKEN_MAX
            covered = max(covered, entry.offset + len(entry.text))
        assert not page.text[covered:].strip()


def test_a_long_text_is_tokenised_once_and_not_once_for_each_candidate(tokenizer: Tokenizer) -> None:
    counted = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(tokenizer.encode(text).ids)

    def starts(text: str) -> list[int]:
        return [begin for begin, _end in tokenizer.encode(text, add_special_tokens=False).offsets]

    text = "\n\n".join("A sentence of eight words, more or less. " * 9 for _ in range(40))
    made = chunk([PageText(0, text)], count_tokens=count, max_tokens=128, token_starts=starts)
    assert len(made) > 20
    assert sum(counted) < len(text) // 10
    # The twin: without it the text is gone over several times.
    counted.clear()
    assert made == chunk([PageText(0, text)], count_tokens=count, max_tokens=128)
    assert sum(counted) > 3 * len(text)


def test_nothing_gives_no_passages() -> None:
    assert split() == []
    assert split("", " \n\t\n") == []


def test_a_passage_knows_its_page_and_never_spans_two() -> None:
    chunks = split("first page", "", "third page")
    assert [(entry.page, entry.text) for entry in chunks] == [(1, "first page"), (3, "third page")]


def test_a_passage_repeats_the_end_of_the_one_before() -> None:
    text = " ".join(f"w{number}" for number in range(60))
    first, second, *_ = split(text)
    assert second.offset < first.offset + len(first.text)
    first, second, *_ = split(text, overlap=0)
    assert second.offset >= first.offset + len(first.text)


def test_a_passage_has_the_nearest_heading_above_it_even_across_pages() -> None:
    body = "word " * 12
    chunks = split(
        f"# One #\n\n{body}\n\n## Two\n\n{body}", f"{body}\n\n# Three\n\n{body}", form="markdown", overlap=0
    )
    assert [(entry.page, entry.heading) for entry in chunks] == [
        (1, "One"),
        (1, "Two"),
        (2, "Two"),
        (2, "Three"),
    ]


def test_a_mark_inside_a_code_fence_is_no_heading() -> None:
    chunks = split("# Real\n\n```\n# comment\n```\n\n" + "word " * 40, form="markdown")
    assert {entry.heading for entry in chunks} == {"Real"}


def test_a_heading_is_cut_to_a_bound() -> None:
    (first, *_) = split("# " + "h" * 5000, form="markdown", max_tokens=512)
    assert len(first.heading) == chunk_module.HEADING_CHARS_MAX


def test_plain_text_has_no_headings() -> None:
    assert [entry.heading for entry in split("# not a heading\n\nword")] == [""]


def test_too_many_passages_are_refused() -> None:
    pages = [PageText(page=0, text="word " * 200)]
    with pytest.raises(InvalidArgument) as caught:
        chunk(pages, count_tokens=words, max_tokens=16, overlap=0, chunks_max=3)
    assert caught.value.reason == "DOCUMENT_TOO_LARGE"
    assert caught.value.fields[0].field == "content"


def test_a_text_that_is_certain_to_be_too_much_is_refused_before_any_work() -> None:
    def count(_text: str) -> int:
        raise AssertionError("counted")

    with pytest.raises(InvalidArgument):
        chunk([PageText(0, "x" * 1000)], count_tokens=count, max_tokens=16, overlap=0, chunks_max=3)


def test_one_endless_word_is_cut_though_a_tokenizer_calls_it_one_token() -> None:
    chunks = split("x" * 10_000)
    assert max(len(entry.text) for entry in chunks) <= 16 * CHARS_PER_TOKEN_MAX


def test_blocks_of_a_long_page_join_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_module, "_BLOCK_CHARS", 600)
    text = "\n\n".join(" ".join(f"p{part}w{number}" for number in range(12)) for part in range(90))
    chunks = split(text, overlap=0)
    assert " ".join(entry.text for entry in chunks).split() == text.split()


@pytest.mark.parametrize("form", ["text", "markdown"])
@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "\n",
        "\n" * 30 + "a",
        " ",
        ". ",
        "[",
        "*a_",
        "> ",
        "- a\n",
        "---\n",
        "<br>\n",
        "a\u0301",
        "|a\n",
        "1. ",
    ],
)
def test_the_work_grows_with_the_text_and_not_with_its_square(form: Format, unit: str) -> None:
    """Some texts made the splitter ask for sizes a million times for 50 KB."""
    counted = 0

    def count(_text: str) -> int:
        nonlocal counted
        counted += 1
        return 3  # the worst: all is one unknown word, so that everything fits into the overlap

    pages = [PageText(0, unit * (60_000 // len(unit)))]
    chunk(pages, count_tokens=count, max_tokens=64, overlap=8, form=form)
    assert counted < 40_000


def test_without_the_floor_an_endless_word_advances_by_a_character_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin of the one before."""

    def calls() -> int:
        counted = 0

        def count(_text: str) -> int:
            nonlocal counted
            counted += 1
            return 3

        chunk([PageText(0, "x" * 1500)], count_tokens=count, max_tokens=16, overlap=4)
        return counted

    bounded = calls()
    monkeypatch.setattr(
        chunk_module,
        "_bounded",
        lambda count, most: lambda text: most + 1 if len(text) > 16 * most else count(text),
    )
    assert calls() > 20 * bounded


def test_the_work_can_be_given_up_in_between() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += 1
        return words(text)

    pages = [PageText(page, "word " * 100) for page in range(1, 50)]
    next(iterate_chunks(pages, count_tokens=count, max_tokens=16, overlap=0))
    few = counted
    list(iterate_chunks(pages, count_tokens=count, max_tokens=16, overlap=0))
    assert few * 10 < counted


def test_a_printed_passage_does_not_show_its_text() -> None:
    (entry,) = split("canary", form="markdown")
    assert "canary" not in repr(entry)
    assert "canary" not in repr(PageText(1, "canary"))


@pytest.mark.parametrize(("max_tokens", "overlap"), [(8, 0), (32, 16), (32, -1)])
def test_limits_that_make_no_sense_are_a_mistake_of_the_programmer(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        chunk([], count_tokens=words, max_tokens=max_tokens, overlap=overlap)


def test_plain_text_is_cut_into_parts_of_about_the_same_size() -> None:
    text = " ".join(f"w{number}" for number in range(70))
    sizes = [words(entry.text) for entry in split(text, max_tokens=64, overlap=0)]
    # Cut at the limit it would be 64 and 6.
    assert len(sizes) == 2
    assert min(sizes) >= 30
