"""Links: the exact form browsers have, since it salts passwords, and no key in a message."""

from __future__ import annotations

import pytest

from swav_ray.errors import UserError
from swav_ray.share.link import Link, read_link, read_service, seconds_of

KEY = "AAECAwQFBgcICQoLDA0ODw"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (f"https://send.example/download/abc123/#{KEY}", f"https://send.example/download/abc123/#{KEY}"),
        (f" https://send.example/download/abc123#{KEY}\n", f"https://send.example/download/abc123/#{KEY}"),
        (f"HTTPS://Send.Example:443/download/abc123/#{KEY}", f"https://send.example/download/abc123/#{KEY}"),
        (f"http://[::1]:8080/a/b/download/abc123/#{KEY}", f"http://[::1]:8080/a/b/download/abc123/#{KEY}"),
    ],
)
def test_links_are_read_as_browsers_write_them(text, whole):
    link = read_link(text)
    assert link.whole() == whole and link.key == bytes(range(16))
    assert KEY not in f"{link} {link!r}" and str(bytes(range(16))) not in repr(link)


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY,
        f"#{KEY}",
        "https://send.example/",
        f"https://send.example/#{KEY}",
        f"ftp://send.example/download/abc/#{KEY}",
        f"https://me:{KEY}@send.example/download/abc/",
        f"https:///download/abc/#{KEY}",
        f"https://send.example:port/download/abc/#{KEY}",
        f"https://send.example/download/../#{KEY}",
        f"https://send.example/download/a%2fb/#{KEY}",
        f"https://send.example/download/abc/?key={KEY}",
        f"https://send.example/?{KEY}/download/abc/#{KEY}",
        "https://send.example/download/abc/",
        f"https://send.example/download/abc/#{KEY[:-1]}",
        f"https://send.example/download/abc/#{KEY}A",
        f"https://send.example/download/abc/#{KEY[:-1]}+",
        f"https://[send.example/download/abc/#{KEY}",
    ],
)
def test_what_is_no_whole_link_is_refused_without_being_repeated(text):
    with pytest.raises(UserError, match="LINK: ") as caught:
        read_link(text)
    assert KEY[:-1] not in str(caught.value)


def test_a_link_to_revoke_needs_no_key():
    assert read_link("https://send.example/download/abc/", with_key=False) == Link("https://send.example/", "abc")
    assert read_link(f"https://send.example/download/abc#{KEY}", with_key=False) == Link("https://send.example/", "abc")


def test_services():
    assert read_service("https://Send.example") == "https://send.example/"
    assert read_service("http://send.example:80/sub/") == "http://send.example/sub/"
    assert read_service("http://127.0.0.1:8080") == "http://127.0.0.1:8080/"
    for text in (
        "send.example",
        "",
        "https://",
        "s3://bucket",
        "https://me:secret@host",
        f"https://host/#{KEY}",
        "http://a b/",
    ):
        with pytest.raises(UserError, match="--to: not the plain address of a Send server") as caught:
            read_service(text)
        assert "secret" not in str(caught.value) and KEY not in str(caught.value)


def test_times():
    assert [seconds_of(text) for text in ("5m", "12h", "1d", "1w")] == [300, 43200, 86400, 604800]
    for text in ("", "1", "d", "0d", "-1d", "1.5d", "1d1h", "1 d", "1y"):
        with pytest.raises(UserError, match="--expires"):
            seconds_of(text)
