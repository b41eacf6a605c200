"""Token ids against the tokenizer's own calls; templates; truncation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from probekit.activations import encoding
from probekit.activations.encoding import (
    MAX_TOKENISED,
    MIN_CHARACTERS,
    Encoder,
    longest_whole,
    read_template,
    shortened,
)
from probekit.data import Rows
from probekit.errors import DataError, UsageError


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model("llama"))


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model("bert"))


def rows_of(encoder: Encoder, contents: list[Any]) -> list[list[int]]:
    found = encoder.encode(contents, [str(i) for i in range(len(contents))])
    return [part.tolist() for part in np.split(found.flat, np.cumsum(found.lengths)[:-1])]


def test_texts_are_tokenised_as_by_the_tokenizer(bert: Any, texts: list[str]) -> None:
    many = texts * 40  # more than one part
    assert rows_of(Encoder(bert, kind="text"), many) == bert(many)["input_ids"]


def test_pairs_carry_their_types(bert: Any) -> None:
    found = Encoder(bert, kind="pair").encode([("a b", "c"), ("d", "e f")], ["0", "1"])
    plain = bert(["a b", "d"], ["c", "e f"])
    assert found.flat.tolist() == [i for row in plain["input_ids"] for i in row]
    assert found.types is not None
    assert found.types.tolist() == [i for row in plain["token_type_ids"] for i in row]
    assert sum(found.types) > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_is_counted_and_keeps_special_tokens(
    bert: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bert, "truncation_side", side)
    contents: list[Any] = ["one two three four five six seven", "one"]
    found = Encoder(bert, kind="text", max_length=6).encode(contents, ["0", "1"])
    assert found.truncated.tolist() == [True, False]
    assert found.lengths.tolist() == [6, len(bert("one")["input_ids"])]
    plain = bert(contents[0], truncation=True, max_length=6)["input_ids"]
    assert found.flat[:6].tolist() == plain
    assert plain[0] == bert.cls_token_id
    assert plain[-1] == bert.sep_token_id
    whole = bert(contents[0])["input_ids"]
    assert plain[1:-1] == (whole[-5:-1] if side == "left" else whole[1:5])


def test_exactly_the_limit_is_not_truncated(bert: Any) -> None:
    length = len(bert("one two three")["input_ids"])
    for limit, cut in ((length, False), (length - 1, True)):
        found = Encoder(bert, kind="text", max_length=limit).encode(["one two three"], ["0"])
        assert found.truncated.tolist() == [cut]


def test_a_limit_without_room_is_refused(bert: Any) -> None:
    with pytest.raises(UsageError, match="leaves no room: this tokenizer adds 3"):
        Encoder(bert, kind="pair", max_length=3)


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_messages_take_the_chat_template_with_one_bos(llama: Any) -> None:
    (ids,) = rows_of(Encoder(llama, kind="messages"), [MESSAGES])
    assert ids == llama.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert ids.count(llama.bos_token_id) == 1
    rendered = llama.apply_chat_template(MESSAGES, tokenize=False)
    assert llama(rendered)["input_ids"].count(llama.bos_token_id) == 2  # control


def test_a_template_without_bos_gets_the_tokenizers_one(llama: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (ids,) = rows_of(Encoder(llama, kind="messages", template=template), [MESSAGES])
    assert ids == llama("hi\nho\n")["input_ids"]
    assert ids.count(llama.bos_token_id) == 1


def test_rows_that_start_with_bos_and_rows_that_do_not_keep_their_order(llama: Any) -> None:
    encoder = Encoder(llama, kind="text", template="{{ text }}")
    contents: list[Any] = ["<s>a", "b", "<s>c", "d"]
    assert rows_of(encoder, contents) == llama(["a", "b", "c", "d"])["input_ids"]


def test_absent_keys_filled_in_with_none_make_no_difference(llama: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.name is defined %}!{% endif %}{{ m.content }}{% endfor %}"
    )
    encoder = Encoder(llama, kind="messages", template=template)
    filled = [{**m, "name": None} for m in MESSAGES]
    named = [{**m, "name": "x"} for m in MESSAGES]
    plain, same, other = rows_of(encoder, [MESSAGES, filled, named])
    assert plain == same
    assert plain != other


def test_a_text_template_sees_text_and_pair_only(llama: Any) -> None:
    encoder = Encoder(llama, kind="pair", template="Q: {{ text }} A: {{ text_pair }}")
    assert rows_of(encoder, [("x", "y")]) == [llama("Q: x A: y")["input_ids"]]
    with pytest.raises(DataError, match="refuses the row with id '7': 'label' is undefined"):
        Encoder(llama, kind="text", template="{{ text }} {{ label }}").encode(["x"], ["7"])


def test_a_template_is_sandboxed(llama: Any) -> None:
    attack = "{{ text.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="unsafe"):
        Encoder(llama, kind="text", template=attack).encode(["x"], ["0"])


def test_templates_that_cannot_be_used_are_refused(llama: Any, bert: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no chat template; name a model .* to `probekit extract` with --template"
    ):
        Encoder(bert, kind="messages")
    with pytest.raises(UsageError, match="is not Jinja2"):
        Encoder(bert, kind="text", template="{{ text")
    with pytest.raises(DataError, match="refuses the row with id '0'"):
        Encoder(llama, kind="messages", template="{{ nothing.at.all }}").encode([MESSAGES], ["0"])
    with pytest.raises(UsageError, match=r"cannot be read: .* does not exist"):
        read_template(tmp_path / "none.jinja")
    (tmp_path / "empty.jinja").write_text(" \n")
    with pytest.raises(UsageError, match="is empty"):
        read_template(tmp_path / "empty.jinja")


def test_rows_without_a_token_are_named(llama: Any, tiny_model: Callable[..., Path]) -> None:
    plain = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    encoder = Encoder(plain, kind="text", template="{{ text | trim }}")
    with pytest.raises(DataError, match=r"1 rows have no token \(ids 'b'\)"):
        encoder.encode(["x", " \n"], ["a", "b"])


def test_all_rows_that_a_template_refuses_are_counted(llama: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    bad = [{"role": "system", "content": "x"}, *MESSAGES]
    rows = Rows({"messages": [MESSAGES, bad] * 1500})
    encoder = Encoder(llama, kind="messages", template=template)
    found = encoder.survey(rows)
    assert list(found.refused) == [str(i) for i in range(1, 3000, 2)]
    assert set(found.refused.values()) == {"no system"}
    with pytest.raises(DataError, match=r"refuses 1,500 of 3,000 rows \(ids '1', '3', '5', …\)"):
        encoder.encode(rows.contents(), rows.ids)


# --- a token that opens every text stands there once ----------------------------------------------


def test_bos_in_the_text_is_not_doubled(llama: Any) -> None:
    encoder = Encoder(llama, kind="text")
    assert rows_of(encoder, ["<s>one", "two", "<s>"]) == [
        llama("one")["input_ids"],
        llama("two")["input_ids"],
        llama("")["input_ids"],
    ]
    assert llama("<s>one")["input_ids"][:2] == [llama.bos_token_id] * 2  # control
    survey = [encoder.survey(Rows({"text": [text]})).opened for text in ("<s>a", "a <s>")]
    assert survey == [True, False]
    # In the middle it is the text's own business.
    assert rows_of(encoder, ["a <s>"]) == [llama("a <s>")["input_ids"]]


def test_cls_in_the_text_is_not_doubled(bert: Any) -> None:
    found = rows_of(Encoder(bert, kind="text"), ["[CLS]one"])
    assert found == [bert("one")["input_ids"]]
    pair = Encoder(bert, kind="pair").encode([("[CLS]one", "two")], ["0"])
    plain = bert(["one"], ["two"])
    assert pair.flat.tolist() == plain["input_ids"][0]
    assert pair.types is not None
    assert pair.types.tolist() == plain["token_type_ids"][0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_text_with_bos_of_its_own_has_as_many_tokens(
    llama: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "truncation_side", side)
    text = "one two three four five six seven"
    (found,) = rows_of(Encoder(llama, kind="text", max_length=5), [f"<s>{text}"])
    assert found == llama(text, truncation=True, max_length=5)["input_ids"]


# --- pairs on decoders ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pairs_on_decoders_have_a_separator_and_one_bos(
    tiny_model: Callable[..., Path], name: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(name))
    encoder = Encoder(tokenizer, kind="pair")
    assert encoder.separator == "\n\n"
    assert rows_of(encoder, [("one", "two")]) == [tokenizer("one\n\ntwo")["input_ids"]]
    alone = tokenizer("one", "two")["input_ids"]  # control: nothing stands between
    assert alone == [*tokenizer("one")["input_ids"], *tokenizer("two")["input_ids"]] or (
        tokenizer.decode(alone).replace("<s>", "").replace(" ", "") == "onetwo"
    )


def test_long_pairs_keep_a_part_of_both_texts(llama: Any) -> None:
    found = Encoder(llama, kind="pair", max_length=9).encode([("a " * 50, "b " * 50)], ["0"])
    text = llama.decode(found.flat)
    assert found.lengths.tolist() == [9]
    assert found.truncated.tolist() == [True]
    assert "a" in text
    assert "b" in text
    assert found.flat.tolist().count(llama.bos_token_id) == 1


def test_pairs_on_encoders_are_left_to_the_tokenizer(bert: Any) -> None:
    encoder = Encoder(bert, kind="pair")
    assert encoder.separator is None
    assert rows_of(encoder, [("one", "two")]) == [bert("one", "two")["input_ids"]]


# --- texts far longer than what is read of them ---------------------------------------------------


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.most = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Any, *more: Any, **options: Any) -> Any:
        given = [texts] if isinstance(texts, str) else texts
        self.most = max(self.most, sum(map(len, given)))
        return self.tokenizer(texts, *more, **options)


LONG = {
    "words": "The heron stood in the reeds. " * 20_000,
    "one word": "x" * 400_000,
    "blanks first": " " * 150_000 + "word " * 50_000,
    "lines": "a\n\n" * 50_000,
    "no blanks": "水は低きに流れる。" * 10_000,
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", LONG)
def test_a_long_text_gives_the_tokens_of_the_whole(
    llama: Any, bert: Any, name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokenizer in (llama, bert):
        monkeypatch.setattr(tokenizer, "truncation_side", side)
        counting = Counting(tokenizer)
        text = LONG[name]
        found = Encoder(counting, kind="text", max_length=16).encode(["short", text], ["0", "1"])
        assert counting.most < len(text)
        plain = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        assert found.flat[-found.lengths[1] :].tolist() == plain
        assert found.truncated.tolist() == [False, True]


def test_a_text_that_is_one_token_is_cut_all_the_same() -> None:
    seen = []

    def one(text: str) -> list[int]:
        seen.append(len(text))
        return [0]

    text = "x" * (MAX_TOKENISED + 1)
    assert shortened(text, 16, one) == text[:MAX_TOKENISED]
    assert max(seen) < MAX_TOKENISED
    assert longest_whole(16) == MIN_CHARACTERS


def test_a_cut_that_changes_tokens_is_moved() -> None:
    # A tokenizer whose first token tells how long the text is, up to four hundred thousand.
    def counted(text: str) -> list[int]:
        return [min(len(text), 400_000), *range(50)]

    text = "x" * 1_500_000
    assert len(shortened(text, 16, counted)) == 16 * MIN_CHARACTERS
    assert len(shortened(text, 16, lambda _: list(range(50)))) == MIN_CHARACTERS  # control


def test_rows_that_are_cut_before_are_counted(llama: Any) -> None:
    rows = Rows({"text": ["short", "long " * MIN_CHARACTERS], "text_pair": ["a", "b"]})
    assert Encoder(llama, kind="pair", max_length=16).survey(rows).long == 1
    assert Encoder(llama, kind="pair").survey(rows).long == 0


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_template_without_end_is_stopped(
    kind: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand million rounds: no machine ends them within the limit, however slow or fast."""
    monkeypatch.setattr(encoding, "MAX_SECONDS", 0.2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    content: Any = [{"role": "user", "content": "a"}] if kind == "messages" else "a"
    encoder = Encoder(tokenizer, kind=kind, template=ENDLESS)
    with pytest.raises(UsageError, match="processor time for the row with id 'r0'"):
        encoder.encode([content], ["r0"])
    short = (
        "{% for i in range(9) %}{% for j in range(9) %}a {% endfor %}{% endfor %}"  # the control
    )
    encoder = Encoder(tokenizer, kind=kind, template=short)
    assert encoder.encode([content], ["r0"]).lengths[0] > 81


def test_a_template_that_is_slow_for_every_row_is_stopped(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is within its limit; a clock that is turned on by hand stands for the time."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr(encoding.time, "thread_time", lambda: next(clock) / 10)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    encoder = Encoder(tokenizer, kind="text", template="{{ text }}")
    few = encoder.encode(["a"] * 60, [str(i) for i in range(60)])  # the control
    assert len(few.lengths) == 60
    monkeypatch.setattr(encoding, "MAX_SECONDS", 1.0)
    with pytest.raises(UsageError, match="of processor time for a row"):
        encoder.encode(["a"] * 60, [str(i) for i in range(60)])


@pytest.mark.parametrize("kind", ["text", "messages"])
@pytest.mark.parametrize("text", ["{{ 9 ** 9 ** 9 }}", "{% if 2**99999999 %}{% endif %}"])
def test_a_template_computes_no_powers(
    kind: str, text: str, tiny_model: Callable[..., Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    with pytest.raises(UsageError, match="power"):
        Encoder(tokenizer, kind=kind, template=text)
    Encoder(tokenizer, kind=kind, template="**bold** {{ dict(**{'a': 1}) }}")


def test_what_a_template_makes_is_text(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character is U+FFFD, as in rows; a text without bounds is refused."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    half, whole = (
        Encoder(tokenizer, kind="text", template=f"{{{{ '{t}' }}}}{{{{ text }}}}")
        for t in ("\\ud800", "\ufffd")
    )
    np.testing.assert_array_equal(half.encode(["a"], ["r"]).flat, whole.encode(["a"], ["r"]).flat)
    monkeypatch.setattr(encoding, "MAX_CHARACTERS", 99)
    long = Encoder(tokenizer, kind="text", template="{{ text * 100 }}")
    with pytest.raises(DataError, match="the text has 100 characters"):
        long.encode(["a"], ["r"])


def test_a_template_of_any_size_or_depth_is_one_sentence(tiny_model: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    for text in ("{{" + "(" * 100_000, "{% if x %}" * 5_000, "x" * ((1 << 20) + 1)):
        with pytest.raises(UsageError, match="template"):
            Encoder(tokenizer, kind="text", template=text)
