"""Test parsing conversations in every form that clients send, and the errors, which name the JSON path."""

import pytest

from llava_ref.chat.messages import ImagePart, Message, TextPart, parse_messages, parse_slots, unheard

from .parsing import B64, PNG, parse, refuse, user


def test_roles_and_strings():
    parsed = parse_messages(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None},
            {"role": "assistant"},
            {"role": "assistant", "content": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "yes", "annotations": []}]},
            {"role": "system", "content": ({"type": "input_text", "text": ""},)},
        ]
    )
    assert [m.role for m in parsed] == ["system", "user", *["assistant"] * 4, "system"]
    assert parsed[0].parts == (TextPart("be brief", "messages[0].content"),)
    assert parsed[2].parts == parsed[3].parts == parsed[4].parts == ()
    assert parsed[5].parts == (TextPart("yes", "messages[5].content[0].text"),)
    assert parsed[6].parts == (TextPart("", "messages[6].content[0].text"),)


def test_order_is_kept():
    image = {"type": "image_url", "image_url": {"url": B64}}
    parts = parse({"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}, image, image)
    assert [type(p).__name__[0] for p in parts] == list("TITII")
    assert parts[3].where == "messages[0].content[3].image_url.url"


@pytest.mark.parametrize(
    "messages, expected",
    [
        (None, "messages: type: expected a list of messages, got NoneType"),
        ("hi", "messages: type: expected a list of messages, got str"),
        ({"role": "user"}, "messages: type: expected a list of messages, got dict"),
        ([], "messages: length: 0 messages, expected 1 to 1024"),
        ([{"role": "user", "content": "x"}] * 1025, "messages: length: 1025 messages"),
        (["hi"], "messages[0]: type: expected an object with 'role' and 'content', got str"),
        ([{"content": "x"}], "messages[0]: role: None is unknown, expected one of system, developer, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "messages[0]: role: ['user'] is unknown"),
        ([{"role": "User", "content": "x"}], "messages[0]: role: 'User' is unknown"),
        (
            [{"role": "tool", "content": "x"}],
            "messages[0].tool_call_id: value: no call of an earlier",
        ),
        (
            [{"role": "function", "content": "x"}],
            "messages[0]: role: 'function' is not supported, expected 'tool'",
        ),
        ([{"role": "user"}], "messages[0].content: type: expected a string or a list of parts, got nothing"),
        ([{"role": "user", "content": 5}], "messages[0].content: type: expected a string or a list of parts, got int"),
        ([{"role": "user", "content": {}}], "messages[0].content: type: expected a string or a list"),
        ([{"role": "user", "content": []}], "messages[0].content: length: an empty list"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{}]}],
            "messages[0].tool_calls[0]: function: expected",
        ),
        ([{"role": "user", "content": "a\ud800b"}], "messages[0].content: character 1: half of a surrogate pair"),
        (user("hi"), "messages[0].content[0]: type: a content part must be an object with a 'type'"),
        (user({"text": "hi"}), "messages[0].content[0]: type: a content part must be an object with a 'type'"),
        (user({"type": 5}), "messages[0].content[0]: type: a content part must be an object"),
        (
            user({"type": "input_audio", "input_audio": {}}),
            "messages[0].content[0]: type: cannot read a content part of",
        ),
        (user({"type": "text"}), "messages[0].content[0].text: type: expected a string, got nothing"),
        (user({"type": "text", "text": ["a"]}), "messages[0].content[0].text: type: expected a string, got list"),
        (user({"type": "image_url"}), "messages[0].content[0]: image: found none, expected one of image_url, image,"),
        (
            user({"type": "image_url", "image_url": B64, "url": B64}),
            "messages[0].content[0]: image: found image_url and",
        ),
        (user({"type": "image", "image": PNG, "path": "a"}), "messages[0].content[0]: image: found image and path"),
        (user({"type": "image_url", "image_url": {}}), "messages[0].content[0]: image_url.url: expected a string"),
        (user({"type": "image_url", "image_url": [B64]}), "messages[0].content[0]: image_url: expected a string"),
        ([{"role": "user", "content": "x", "images": [B64]}], "messages[0]: images: not supported here"),
        ([{"role": "user", "content": "x", "tool_call_id": "1"}], "messages[0]: tool_call_id: not supported here"),
        ([{"role": "user", "content": "x", "text": "y"}], "messages[0]: text: not supported here"),
        (
            user({"type": "text", "text": "a", "image_url": B64}),
            "messages[0].content[0]: image_url: not supported here",
        ),
        (
            user({"type": "image_url", "image_url": B64, "text": "a"}),
            "messages[0].content[0]: text: not supported here",
        ),
        (user({"type": "input_image", "file_id": "f"}), "messages[0].content[0]: file_id: not supported here"),
        (
            user({"type": "image", "source": {"type": "file", "file_id": "f"}}),
            "messages[0].content[0].source: file_id:",
        ),
        (
            user({"type": "image", "source": {"type": "url", "url": "http://a"}}),
            "messages[0].content[0]: source.url: URL",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else None,
)
def test_errors_name_the_place(messages, expected):
    assert refuse(messages).startswith(expected)
    assert refuse(messages, allow_objects=False).startswith(expected)


def test_the_greatest_number_of_messages_is_accepted():
    assert len(parse_messages([{"role": "user", "content": "x"}] * 1024)) == 1024


def test_the_path_starts_where_the_caller_says():
    assert refuse([{"role": "judge"}], where="body.messages").startswith("body.messages[0]: role: ")


def test_empty_keys_count_as_absent():
    """Check keys that clients echo: they send a reply back as they got it, as an object of an SDK."""
    echo = {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "tool_calls": [],
        "audio": {},
        "name": "",
        "x": False,
    }
    assert parse_messages([echo])[0].parts[0].text == "yes"


def test_keys_without_effect_are_accepted_and_listed():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "lang": "de"}], "name": "bob"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "name": "", "annotations": [], "prefix": True},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": B64, "crop": 1}, "min_pixels": 9}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": B64, "title": "x"}}]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": B64, "detail": "low", "cache_control": {"a": 1}}],
        },
        Message("user", (TextPart("hi"),)),
    ]
    parsed = parse_messages(messages)
    assert [part.text for m in parsed[:2] for part in m.parts] == ["a", "b"]
    assert unheard(messages) == [
        "messages[0].name",
        "messages[0].content[0].lang",
        "messages[1].reasoning_content",
        "messages[2].content[0].min_pixels",
        "messages[2].content[0].image_url.crop",
        "messages[3].content[0].source.title",
    ]


@pytest.mark.parametrize("messages", [None, 3, "x", [3], [{"content": 3}], [{"content": [3, None, [1], {}]}], [[]]])
def test_no_key_is_listed_of_a_malformed_conversation(messages):
    assert unheard(messages) == []


def test_seventeen_pictures_are_refused():
    image = {"type": "image_url", "image_url": B64}
    many = [*user(*[image] * 10), *user(*[image] * 6)]
    assert sum(len(m.parts) for m in parse_messages(many)) == 16
    assert refuse([*many, *user(image)]) == "messages[2].content[0].image_url: image: 17 images, expected at most 16"


def test_parsed_messages_are_returned_unchanged():
    messages = [Message("user", (TextPart("hi"), ImagePart(PNG)))]
    assert parse_messages(messages) == messages


def test_slots_need_no_picture():
    parts = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "http://a"}}, {"type": "text", "text": "x"}]
    (message,) = parse_slots(user(*parts))
    assert [isinstance(p, ImagePart) for p in message.parts] == [True, True, False]
    assert "found none" in refuse(user({"type": "image"}))


def test_urls_are_fetched_if_the_caller_passes_fetch():
    fetched = []

    def fetch(url, where):
        fetched.append((url, where))
        return PNG

    text = {"type": "text", "text": "http://a/b"}
    parts = parse(
        {"type": "image_url", "image_url": {"url": " http://a/b\n"}},
        text,
        {"type": "image", "url": "https://c"},
        fetch=fetch,
    )
    assert [part.source for part in parts if isinstance(part, ImagePart)] == [PNG, PNG]
    assert fetched == [
        ("http://a/b", "messages[0].content[0].image_url.url"),
        ("https://c", "messages[0].content[2].url"),
    ]


def test_nothing_is_fetched_for_a_conversation_that_is_refused():
    def fetch(url, where):
        raise AssertionError(url)

    picture = {"type": "image_url", "image_url": {"url": "http://a/b"}}
    for parts in (
        [picture, {"type": "audio"}],
        [picture] * 17,
        [picture, {"type": "image_url", "image_url": {"url": "!"}}],
    ):
        refuse(user(*parts), fetch=fetch)
