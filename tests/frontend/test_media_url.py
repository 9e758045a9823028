"""Addresses are read strictly, and only public ones count as public."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import BadMedia, MediaBlocked
from glimt.frontend.media_url import WebAddress, data_start, parse_redirect, parse_web_address
from glimt.frontend.public_address import is_public


@pytest.mark.parametrize(
    ("url", "serialised"),
    [
        ("http://ok.example", "http://ok.example/"),
        ("HTTPS://OK.Example:443/A.png?x=1&y=%20#part", "https://ok.example/A.png?x=1&y=%20"),
        ("http://ok.example:8080/a/../b", "http://ok.example:8080/a/../b"),
        ("http://8.8.8.8/a", "http://8.8.8.8/a"),
        ("http://[2606:4700:0::1111]/", "http://[2606:4700::1111]/"),
        ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example/"),
        ("http://cdn.x2/", "http://cdn.x2/"),
    ],
)
def test_plain_addresses_are_taken_apart_and_put_together(url: str, serialised: str) -> None:
    assert str(parse_web_address(url)) == serialised
    assert parse_web_address(serialised) == parse_web_address(url)


def test_names_and_ip_literals_are_told_apart() -> None:
    for host, is_ip in [("a.x2", False), ("8.8.4.4", True), ("[2001:4860::1]", True)]:
        assert parse_web_address(f"http://{host}/").is_ip is is_ip


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://1.2.3.4.5/",
        "http://ok.example.0x7f/",
        "http://\u2460\u2461\u2466.0.0.1/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://127\u30020\u30020\u30021/",
        "http://ok.example\\@127.0.0.1/",
        "http://ok.example@127.0.0.1/",
        "http://user:secret@ok.example/",
        "http://ok.example:80\\@127.0.0.1/",
        "ht\ttp://ok.example/",
        "http://127.0.0.1\n.ok.example/",
        " http://ok.example/",
        "http://ok.example/a b",
        "http://ok\0.example/",
        "http://ok\u200b.example/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://ok.example:0/",
        "http://ok.example:80a/",
        "http://ok.example:080/",
        "http://ok.example:123456/",
        "http://localhost/",
        "http://metadata/",
        "http://ok.example./",
        "http://-a.example/",
        "http://a..example/",
        "http://a_b.example/",
        "http://" + "a" * 64 + ".example/",
        "http:/ok.example/",
        "http:ok.example",
        "http:///path",
        "//ok.example/x",
        "ftp://ok.example/",
        "http://ok.example/%zz",
        "http://ok.example/" + "a" * 100_000,
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(MediaBlocked) as refused:
        parse_web_address(url, "here")
    assert refused.value.param == "here"


def test_a_fragment_hides_no_host() -> None:
    assert parse_web_address("http://127.0.0.1#@ok.example/").host == "127.0.0.1"


@given(st.text(max_size=60))
def test_no_text_is_read_in_two_ways(rest: str) -> None:
    try:
        address = parse_web_address("http://" + rest)
    except MediaBlocked:
        return
    assert parse_web_address(str(address)) == address


PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "::a9fe:a9fe",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2002:808:808::",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2001:2::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "3fff::1",
    "100::1",
    "5f00::1",
    "not-an-address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_nothing_private_by_the_library_is_public_by_us(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    nat64 = ipaddress.IPv6Network("64:ff9b::/96")
    if is_public(str(address)) and not (address.version == 6 and address in nat64):
        assert address.is_global
        assert not address.is_multicast


def test_an_operator_may_allow_a_network_and_nothing_beside_it() -> None:
    allowed = (ipaddress.ip_network("127.0.0.0/8"),)
    assert is_public("127.0.0.1", allowed)
    assert is_public("::ffff:127.0.0.1", allowed)
    assert not is_public("10.0.0.1", allowed)
    assert not is_public("::1", allowed)


ORIGIN = WebAddress("https", "ok.example", 443, "/a")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b?c", "https://ok.example/b?c"),
        ("https://other.example/x", "https://other.example/x"),
    ],
)
def test_redirects_go_to_paths_and_whole_addresses(location: str, url: str) -> None:
    assert str(parse_redirect(location, ORIGIN)) == url


@pytest.mark.parametrize(
    "location", ["http://ok.example/", "//evil.example/", "file:///etc/passwd", "b", "", "ftp://x/"]
)
def test_redirects_go_nowhere_else(location: str) -> None:
    with pytest.raises(MediaBlocked):
        parse_redirect(location, ORIGIN)


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:image/png;base64,",
        "data:IMAGE/svg+xml;base64,",
        "data:video/mp4;codecs=avc1;base64,",
    ],
)
def test_data_urls_begin_where_their_text_does(head: str) -> None:
    assert data_start(head + "AAAA") == len(head)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:,hello",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64;x=1,AAAA",
        "data: image/png;base64,AAAA",
        "data:video/jpeg;base64," + "AAAA," * 100_000,
        "data:image/png;" + "a=b;" * 250_000 + "base64,AAAA",
        "data:",
    ],
)
def test_other_data_urls_are_refused(url: str) -> None:
    with pytest.raises(BadMedia):
        data_start(url)


def test_a_row_of_jpegs_is_refused_with_what_to_send_in_its_place() -> None:
    with pytest.raises(BadMedia, match=r"MP4.*each picture as an image"):
        data_start("data:video/JPEG;base64,AAAA,AAAA")
