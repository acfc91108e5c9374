"""Random prompts of tokens and of words."""

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.prompts import WORDS, token_prompts, word_prompts


def test_random_tokens_are_of_the_pool_and_of_the_seed() -> None:
    options = LoadOptions(input_len=6, output_len=3, shared_prefix_len=4)
    prompt = token_prompts([5, 7, 11], options)
    first, second = prompt(0), prompt(1)
    assert isinstance(first.content, list) and isinstance(second.content, list)
    assert len(first.content) == first.input_len == 10 and first.output_len == 3
    assert set(first.content) <= {5, 7, 11}
    assert first.content[:4] == second.content[:4] and first.content != second.content
    assert token_prompts([5, 7, 11], options)(1) == second
    other = token_prompts([5, 7, 11], LoadOptions(input_len=10, seed=1))(0)
    assert other.content != first.content


def test_random_words_are_as_many_as_tokens_are_wanted() -> None:
    prompt = word_prompts(LoadOptions(input_len=6), is_chat=False)(2)
    assert isinstance(prompt.content, str) and prompt.input_len == 0
    words = prompt.content.split(" ")
    assert len(words) == 6 and set(words) <= set(WORDS)
    chat = word_prompts(LoadOptions(input_len=6), is_chat=True)(2)
    assert chat.content == [{"role": "user", "content": prompt.content}]
