from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_folders import byte_fallback, byte_level

from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Tokenizer
from workers.backends.protocol import Choice
from workers.engine.choice_writer import ChoiceWriter
from workers.engine.sampler import Sample


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("tokenizer")))


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte."""
    by_byte = {tokenizer.token_bytes(token_id): token_id for token_id in reversed(range(tokenizer.vocab_size))}
    return [by_byte[bytes([byte])] for byte in text.encode()]


def write(tokenizer: Tokenizer, token_ids: list[int], **params: Any) -> tuple[Choice, int]:
    """The choice, and how many tokens it took."""
    params = {"max_tokens": len(token_ids), "logprobs": 0, **params}
    writer = ChoiceWriter(0, GenerationParams(**params), tokenizer, tokenizer.eos_token_ids)
    for num_tokens, token_id in enumerate(token_ids, start=1):
        writer.append(Sample(token_id, -0.5, ((token_id, -0.5),)))
        if writer.finish_reason is not None:
            return writer.choice(), num_tokens
    raise AssertionError("it did not finish")


def logprob_text(choice: Choice) -> str:
    assert choice.logprobs is not None
    return bytes(byte for entry in choice.logprobs for byte in entry.sampled.bytes).decode(errors="replace")


def test_an_answer_ends_at_max_tokens(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, letters(tokenizer, "abc"))
    assert (choice.text, choice.finish_reason, logprob_text(choice)) == ("abc", "length", "abc")


def test_a_stop_string_is_found_across_tokens(tokenizer: Tokenizer) -> None:
    choice, num_tokens = write(tokenizer, letters(tokenizer, "one STOP two"), stop=("STOP",))
    assert (choice.text, choice.finish_reason, logprob_text(choice)) == ("one ", "stop", "one ")
    assert num_tokens == len("one STOP")
    assert len(choice.token_ids) == num_tokens, "the tokens of the stop string were generated, and count"


def test_the_first_of_several_stop_strings_wins(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, letters(tokenizer, "a.b\n\nc"), stop=("\n\n", "c", "b\n"))
    assert choice.text == "a."


def test_a_stop_string_inside_a_token_cuts_its_text_and_keeps_its_logprob(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("the dog", add_special_tokens=False)
    assert len(token_ids) < len("the dog"), "the tokens are longer than a letter"
    last = tokenizer.token_text(token_ids[-1])
    choice, _ = write(tokenizer, token_ids, stop=(last[-1],))
    assert choice.text == "the dog"[: "the dog".index(last[-1])]
    assert choice.logprobs is not None
    assert len(choice.logprobs) == len(choice.token_ids)


def test_a_character_that_no_token_finishes_becomes_a_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, letters(tokenizer, "aé")[:-1])
    assert choice.text == "a\ufffd"
    choice, _ = write(tokenizer, [*letters(tokenizer, "aé")[:-1], *tokenizer.eos_token_ids])
    assert (choice.text, choice.finish_reason) == ("a\ufffd", "stop")


def test_a_stop_string_of_many_bytes_is_found(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, letters(tokenizer, "naïve → 価格 …"), stop=("価",))
    assert (choice.text, logprob_text(choice)) == ("naïve → ", "naïve → ")


def test_the_end_of_sequence_has_no_text_and_no_logprob(tokenizer: Tokenizer) -> None:
    (eos,) = tokenizer.eos_token_ids
    choice, _ = write(tokenizer, [*letters(tokenizer, "ab"), eos, *letters(tokenizer, "c")])
    assert (choice.text, choice.finish_reason, logprob_text(choice)) == ("ab", "stop", "ab")
    assert choice.token_ids[-1] == eos


def test_a_special_token_that_ends_nothing_is_kept_without_text(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, [0, *letters(tokenizer, "ab"), 0])
    assert choice.text == "ab"
    assert choice.logprobs is not None
    assert len(choice.logprobs) == 4


def test_a_token_knows_where_its_text_begins(tokenizer: Tokenizer) -> None:
    choice, _ = write(tokenizer, [0, *letters(tokenizer, "aéb"), 0, *letters(tokenizer, "c")])
    assert choice.logprobs is not None
    assert choice.text == "aébc"
    # A special token has no text, and no half of a character has one of its own.
    assert [entry.text_offset for entry in choice.logprobs] == [0, 0, 1, 1, 2, 3, 3]
    choice, _ = write(tokenizer, [*letters(tokenizer, "é")[:1], *letters(tokenizer, "bc")])
    assert choice.logprobs is not None
    assert (choice.text, [entry.text_offset for entry in choice.logprobs]) == ("\ufffdbc", [0, 1, 2])


def test_the_space_between_prompt_and_answer_is_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_fallback(tmp_path))
    token_ids = tokenizer.encode("over the", add_special_tokens=False)
    assert write(tokenizer, token_ids)[0].text == " over the"


@given(text=st.text(alphabet="abé→", max_size=24), stop=st.lists(st.text(alphabet="abé→", min_size=1, max_size=4)))
def test_a_text_is_cut_where_a_plain_search_cuts_it(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    token_ids = letters(tokenizer, text + "!")
    choice, _ = write(tokenizer, token_ids, stop=tuple(stop))
    # The stop string that is complete first wins; of those complete at once, the one that begins first.
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    expected = text[: min(ends)[1]] if ends else text + "!"
    assert choice.text == expected
    assert logprob_text(choice) == expected


@given(data=st.data())
def test_a_text_is_the_same_whether_or_not_it_was_needed_while_it_came(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), min_size=1, max_size=24))
    for params in ({}, {"max_tokens": len(token_ids) + 1}):
        late_ids = [*token_ids, *tokenizer.eos_token_ids]
        late, num_tokens = write(tokenizer, late_ids, logprobs=None, **params)
        early, expected_num_tokens = write(tokenizer, late_ids, logprobs=0, **params)
        assert (late.text, late.finish_reason, late.token_ids) == (early.text, early.finish_reason, early.token_ids)
        assert num_tokens == expected_num_tokens
        assert late.logprobs is None
