"""The template's environment, its errors, its arguments."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from glimt.errors import BadCheckpoint, BadSettings, InvalidRequest
from glimt.frontend.template import ChatTemplate, check_operators_kwargs, check_template_kwargs
from tests.support.prompts import STYLES, template_source

MESSAGES = [{"role": "user", "content": "<a & 'b'> ø"}]


def _render(source: str, messages=MESSAGES, **kwargs) -> str:
    return ChatTemplate(source).render(messages, **kwargs)


@given(
    st.sampled_from(STYLES),
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=20)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_renderings_equal_those_of_transformers(style, turns, add_generation_prompt) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    (expected,), _ = render_jinja_template(
        [messages],
        chat_template=template_source(style),
        add_generation_prompt=add_generation_prompt,
    )
    ours = _render(template_source(style), messages, add_generation_prompt=add_generation_prompt)
    assert ours == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{{ messages | tojson(ensure_ascii=True) }}",
        "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}",
        "  {% for m in messages %}\n  {% if loop.first %}{% break %}{% endif %}{% endfor %}\nx",
        "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}",
    ],
)
def test_filters_and_blocks_are_those_that_templates_are_written_for(source: str) -> None:
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=source)
    assert _render(source, add_generation_prompt=False) == expected


def test_private_characters_survive_ascii_json_since_they_may_be_stand_ins() -> None:
    assert _render("{{ 'æ\ue000' | tojson(ensure_ascii=True) }}") == '"\\u00e6\ue000"'


def test_the_date_is_asked_of_the_clock_that_was_given() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", now=lambda: datetime(2031, 2, 3))
    assert template.render(MESSAGES) == "2031-02-03"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must"),
        ("{{ messages[0].nothing.at_all }}", "do not have"),
        ("{{ ''.__class__.__mro__ }}", "forbids"),
        ("{{ messages.append(1) }}", "forbids"),
        ("{{ messages[0].content + 1 }}", "cannot handle"),
        ("{{ 1 / 0 }}", "cannot handle"),
        ("{% for i in range(10**9) %}{% endfor %}", "cannot handle"),
        ("{% include 'other' %}", "cannot handle"),
    ],
)
def test_a_failing_template_gives_a_plain_error(source: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as caught:
        _render(source)
    assert caught.value.param == "messages"
    assert "Traceback" not in caught.value.message


def test_a_template_that_is_no_template_is_refused_with_its_line() -> None:
    with pytest.raises(BadCheckpoint, match="line 2"):
        ChatTemplate("a\n{% if %}")


@pytest.mark.parametrize(
    "name",
    ["tokenize", "messages", "tools", "add_generation_prompt", "eos_token", "documents", "x y", ""],
)
def test_arguments_that_are_not_on_the_list_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not known"):
        check_template_kwargs({name: True})


def test_arguments_that_the_template_reads_may_be_set() -> None:
    source = "{% if style is defined %}{{ style }}{% endif %}{{ strftime_now('%Y') }}{{ messages }}"
    template = ChatTemplate(source)
    assert template.own_arguments == {"style"}
    kwargs = {"style": {"any": ["JSON"]}, "enable_thinking": False}
    assert check_template_kwargs(kwargs, template.own_arguments) == kwargs
    for name in ("strftime_now", "raise_exception", "range", "messages", "mood"):
        with pytest.raises(InvalidRequest, match=r"not known.*clear_thinking.*style") as caught:
            check_template_kwargs({name: "x"}, template.own_arguments)
        assert caught.value.param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{% set tone = tone or 'kind' %}{{ tone }}", {"tone"}),
        ("{% if tone is not defined %}{% set tone = 1 %}{% endif %}{{ tone }}", {"tone"}),
        ("{% for m in messages %}{% if m.x %}{% set t = 1 %}{% endif %}{{ t }}{% endfor %}", set()),
        ("{% macro f(a, b=c) %}{{ a }}{{ d }}{% endmacro %}{{ f(1) }}", {"c", "d"}),
        ("{% for t in things %}{{ t }}{% endfor %}{{ messages }}", {"things"}),
    ],
)
def test_what_a_template_sets_before_it_reads_it_is_no_argument(
    source: str, names: set[str]
) -> None:
    assert ChatTemplate(source).own_arguments == names


def test_published_templates_read_nothing_but_the_known_switches() -> None:
    assert [ChatTemplate(template_source(style)).own_arguments for style in STYLES] == [set()] * 2


def test_operators_arguments_are_checked_against_the_template() -> None:
    check_operators_kwargs({"mood": "x", "enable_thinking": True}, ChatTemplate("{{ mood }}"))
    with pytest.raises(BadSettings, match=r"--default-chat-template-kwargs.*mood is not known"):
        check_operators_kwargs({"mood": "x"}, ChatTemplate("{{ messages }}"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"enable_thinking": "yes"},
        {"enable_thinking": 1},
        {"enable_thinking": None},
        {"thinking": {"type": "enabled"}},
        {"reasoning_effort": "<|user|>"},
        {"reasoning_effort": 3},
        {"reasoning_effort": ["low"]},
        {"enable_thinking": True, "thinking": False},
    ],
)
def test_arguments_of_the_wrong_type_are_named(kwargs: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        check_template_kwargs(kwargs)


@pytest.mark.parametrize(
    ("kwargs", "enable_thinking"),
    [
        ({}, None),
        ({"enable_thinking": False}, False),
        ({"thinking": False}, False),
        ({"thinking": True, "enable_thinking": True}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning_effort": "none", "enable_thinking": True}, True),
    ],
)
def test_all_spellings_of_thinking_mean_the_same(kwargs, enable_thinking) -> None:
    assert check_template_kwargs(kwargs).get("enable_thinking") is enable_thinking


@pytest.mark.parametrize("style", STYLES)
def test_published_templates_take_lists_and_texts(style: str) -> None:
    template = ChatTemplate(template_source(style))
    assert template.takes_lists("auto")
    assert template.takes_texts("auto")
    assert not template.takes_lists("string")
    assert not template.takes_texts("openai")


@pytest.mark.parametrize(
    ("source", "lists", "texts"),
    [
        ("{{ messages[0].content }}", False, True),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", True, False),
        ("{{ raise_exception('no') }}", False, True),
        ("{{ messages | tojson }}", False, True),
    ],
)
def test_what_a_template_takes_is_found_out(source: str, lists: bool, texts: bool) -> None:
    template = ChatTemplate(source)
    assert (template.takes_lists("auto"), template.takes_texts("auto")) == (lists, texts)
