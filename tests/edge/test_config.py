"""The configuration file: found, read, and every problem reported at once."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.addressing import Address, check_ae_title, check_host, is_within, parse_address
from edge.config import MAX_FILE_BYTES, ConfigError, changed, effective, find, load, parse, warnings
from edge.options import MAX_PEERS, Limits, Peer, Settings

PEER = '[[peer]]\nname = "A"\nae_title = "A"\nhost = "10.0.0.1"\nport = 104\n'
SECOND = PEER.replace('"A"', '"B"')


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f.toml")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


AE_ALLOWED = "1 to 16 ASCII characters, not only spaces, no backslash, no control characters"
HOST_ALLOWED = "an IP address or a host name"
PATH_ALLOWED = "an absolute path below /, without `..`"
NET_ALLOWED = 'a list of at most 64 IP addresses and networks, such as ["10.1.2.3", "10.1.8.0/24"]'
PORT_ALLOWED = "a whole number, 1 to 65535"
PEER_OPTIONS = (
    "name, ae_title, host, port, may_send, receives_results, address_check, accept_from, "
    "certificate_sha256, tls, tls_name"
)
IS_TAKEN = "which peer[0] has; each peer has its own"
NAME_ALLOWED = "1 to 64 letters, digits, `.`, `_`, `-`, beginning with a letter or digit"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[node]\nae_title = ""', f'node.ae_title: got "", allowed {AE_ALLOWED}'),
        ('[node]\nae_title = "    "', f'node.ae_title: got "    ", allowed {AE_ALLOWED}'),
        ('[node]\nae_title = "A\\\\B"', f'node.ae_title: got "A\\\\B", allowed {AE_ALLOWED}'),
        ('[node]\nae_title = "A\\tB"', f'node.ae_title: got "A\\u0009B", allowed {AE_ALLOWED}'),
        ('[node]\nae_title = "Müller"', f'node.ae_title: got "Müller", allowed {AE_ALLOWED}'),
        (
            '[node]\nae_title = "SEVENTEEN_LETTERS"',
            f'node.ae_title: got "SEVENTEEN_LETTERS", allowed {AE_ALLOWED}',
        ),
        ("[node]\nae_title = 1", f"node.ae_title: got 1, allowed {AE_ALLOWED}"),
        ("[node]\nport = 65536", "node.port: got 65536, allowed a whole number, 0 to 65535"),
        ("[node]\nport = -1", "node.port: got -1, allowed a whole number, 0 to 65535"),
        ('[node]\nport = "104"', 'node.port: got "104", allowed a whole number, 0 to 65535'),
        ("[node]\nport = 104.0", "node.port: got 104, allowed a whole number, 0 to 65535"),
        ("[node]\nport = true", "node.port: got true, allowed a whole number, 0 to 65535"),
        ("[node]\nport = {}", "node.port: got a table, allowed a whole number, 0 to 65535"),
        ('[node]\nhost = "10.0.0.256"', f'node.host: got "10.0.0.256", allowed {HOST_ALLOWED}'),
        ('[node]\nhost = "a b"', f'node.host: got "a b", allowed {HOST_ALLOWED}'),
        ('[node]\nhost = ""', f'node.host: got "", allowed {HOST_ALLOWED}'),
        ("[receive]\ndurable = 1", "receive.durable: got 1, allowed true or false"),
        (
            "[assemble]\nquiet_s = nan",
            "assemble.quiet_s: got nan, allowed a number, 0.05 to 3600",
        ),
        ("[assemble]\nquiet_s = 0", "assemble.quiet_s: got 0, allowed a number, 0.05 to 3600"),
        (
            "[limits]\nmax_object_bytes = 1",
            "limits.max_object_bytes: got 1, allowed a whole number, 1048576 to 1099511627776",
        ),
        (
            f"[limits]\nmax_associations = 0x{'f' * 5000}",
            "limits.max_associations: got a number of more than 77 digits, allowed a whole number, 1 to 1024",
        ),
        (
            '[log]\nlevel = "loud"',
            'log.level: got "loud", allowed "debug" or "info" or "warning" or "error"',
        ),
        (
            '[directories]\nstate = "var/lib"',
            f'directories.state: got "var/lib", allowed {PATH_ALLOWED}',
        ),
        ('[directories]\nstate = "/"', f'directories.state: got "/", allowed {PATH_ALLOWED}'),
        (
            '[directories]\nstate = "/a/../b"',
            f'directories.state: got "/a/../b", allowed {PATH_ALLOWED}',
        ),
        (
            '[directories]\ncache = "/var/lib/insitu/cache"',
            (
                'directories.cache: got "/var/lib/insitu/cache", '
                'allowed outside of directories.state = "/var/lib/insitu"'
            ),
        ),
        (
            '[directories]\ncache = "/run/insitu"',
            'directories.runtime: got "/run/insitu", allowed outside of directories.cache = "/run/insitu"',
        ),
        (
            "[limits]\nmax_associations = 8",
            "limits.max_associations_per_peer: got 16, allowed at most limits.max_associations = 8",
        ),
        (
            "[deliver]\nbackoff_base_s = 9\nbackoff_max_s = 8.5",
            "deliver.backoff_base_s: got 9, allowed at most deliver.backoff_max_s = 8.5",
        ),
        ("[node]\nae_titel = 1", "node.ae_titel: no such option; did you mean ae_title?"),
        ("[node]\nquiet_s = 1", "node.quiet_s: no such option; quiet_s belongs in [assemble]"),
        ("[node]\nmay_send = true", "node.may_send: no such option; may_send belongs in [[peer]]"),
        ("[node]\nwibble = 1", "node.wibble: no such option; there are ae_title, host, port"),
        ('[node]\n"a b" = 1', 'node."a b": no such option; there are ae_title, host, port'),
        ("[nodes]", "nodes: no such section; did you mean node?"),
        ("[[peers]]", "peers: no such section; did you mean peer?"),
        ("port = 1", "port: no such section; port belongs in [node]"),
        ("node = 3", "node: got 3, allowed a table [node]"),
        ("peer = 3", "peer: got 3, allowed one or more tables [[peer]]"),
        ('[peer]\nname = "A"', "peer: got a table, allowed one or more tables [[peer]]"),
        ("peer = [3]", "peer[0]: got 3, allowed one or more tables [[peer]]"),
        (PEER + SECOND + "colour = 1\n", f"peer[1].colour: no such option; there are {PEER_OPTIONS}"),
        (PEER.replace("104", "0"), "peer[0].port: got 0, allowed a whole number, 1 to 65535"),
        (PEER + SECOND.replace("port = 104\n", ""), f"peer[1].port: got nothing, allowed {PORT_ALLOWED}"),
        (PEER.replace('name = "A"', 'name = "../x"'), f'peer[0].name: got "../x", allowed {NAME_ALLOWED}'),
        (
            PEER + 'accept_from = ["10.0.0.1/8"]\n',
            f'peer[0].accept_from: got ["10.0.0.1/8"], allowed {NET_ALLOWED}',
        ),
        (PEER + 'accept_from = "10.0.0.1"\n', f'peer[0].accept_from: got "10.0.0.1", allowed {NET_ALLOWED}'),
        (PEER + SECOND.replace('name = "B"', 'name = "A"'), f'peer[1].name: got "A", {IS_TAKEN}'),
        (
            PEER + SECOND.replace('ae_title = "B"', 'ae_title = " A "'),
            f'peer[1].ae_title: got " A ", {IS_TAKEN}',
        ),
    ],
)
def test_a_wrong_value_is_reported_with_file_key_got_and_allowed(text: str, problem: str) -> None:
    assert problems(text) == [f"f.toml: {problem}"]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = (
        "[log]\nlevel = 3\n[node]\nport = 70000\nhost = '?'\nwibble = 1\n"
        "[deliver]\nbackoff_base_s = 10\nbackoff_max_s = 5\n"
        '[[peer]]\nname = "A"\nhost = "10.0.0.1"\nport = 1\n'
        '[[peer]]\nname = "A"\nae_title = "B"\nhost = "10.0.0.1"\nport = 0\n'
    )
    assert [line.split(": ")[1] for line in problems(text)] == [
        "log.level",
        "node.port",
        "node.host",
        "node.wibble",
        "peer[0].ae_title",
        "peer[1].port",
        "deliver.backoff_base_s",
        "peer[1].name",
    ]


def test_a_contradiction_with_a_value_that_is_wrong_itself_is_not_reported_twice() -> None:
    lines = problems("[limits]\nmax_associations = 0\nmax_associations_per_peer = 1000")
    assert lines == ["f.toml: limits.max_associations: got 0, allowed a whole number, 1 to 1024"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"[node]\nport 104", "line 2, column 6: not TOML: Expected '=' after a key in a key/value pair"),
        (b"[node]\nport = \n", "line 2, column 8: not TOML: Invalid value"),
        (b"[node", "end of document: not TOML: Expected ']' at the end of a table declaration"),
        (b"[node]\nhost = '\xff'", "line 2: not UTF-8"),
        (b"x = " + b"[" * 9000, "not TOML that we read: nested too deeply"),
        (b"x = " + b"9" * 5000, "not TOML that we read: a number is too long"),
        (b"#" * (MAX_FILE_BYTES + 1), f"more than {MAX_FILE_BYTES} bytes: not a configuration file"),
    ],
)
def test_what_is_not_toml_is_reported_with_its_place(raw: bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw, "f.toml")
    assert caught.value.problems == (f"f.toml: {problem}",)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_a_configuration_error(raw: bytes) -> None:
    try:
        assert isinstance(parse(raw, "f.toml"), Settings)
    except ConfigError as error:
        assert error.problems
        assert all(line.startswith("f.toml: ") for line in error.problems)


_SCALARS: st.SearchStrategy[object] = st.one_of(
    st.integers(), st.booleans(), st.just("x"), st.just([]), st.just({})
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Settings.model_fields, "peer", "x"]),
        st.one_of(
            _SCALARS,
            st.dictionaries(st.sampled_from(["port", "host", "max_associations", "y"]), _SCALARS),
            st.lists(st.dictionaries(st.sampled_from(["name", "port", "z"]), _SCALARS), max_size=3),
        ),
    )
)
def test_any_shape_of_document_is_settings_or_a_configuration_error(data: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in data.items())
    try:
        assert isinstance(parse(text.encode(), "f.toml"), Settings)
    except ConfigError as error:
        assert error.problems


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case str():
            return f'"{value}"'
    return str(value)


def test_more_peers_than_allowed_are_refused() -> None:
    tables = [PEER.replace('"A"', f'"A{index}"') for index in range(MAX_PEERS + 1)]
    assert len(parse("".join(tables[:MAX_PEERS]).encode(), "f.toml").peers) == MAX_PEERS
    assert problems("".join(tables)) == [
        f"f.toml: peer: got {MAX_PEERS + 1} tables, allowed at most {MAX_PEERS}"
    ]


def test_peers_are_read_with_their_defaults() -> None:
    text = PEER + 'ae_title2 = ""\n'
    assert problems(text) == ["f.toml: peer[0].ae_title2: no such option; did you mean ae_title?"]
    read = parse((PEER + SECOND + "may_send = false\nreceives_results = true\n").encode(), "f.toml")
    assert read.peers == (
        Peer(name="A", ae_title="A", host="10.0.0.1", port=104),
        Peer(name="B", ae_title="B", host="10.0.0.1", port=104, may_send=False, receives_results=True),
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().node.port = 1  # type: ignore[misc]


def test_the_named_file_comes_before_the_environment_before_the_default(tmp_path: Path) -> None:
    named, variable, default = (tmp_path / name for name in ("named", "variable", "default"))
    environ = {"INSITU_CONFIG": str(variable)}
    for port, file in enumerate((default, variable, named), 1):
        file.write_text(f"[node]\nport = {port}")
    assert load(named, environ, default).node.port == 3
    assert load(None, environ, default).node.port == 2
    assert load(None, {"INSITU_CONFIG": ""}, default).node.port == 1
    default.unlink()
    assert find(None, {}, default) is None
    assert load(None, {}, default) == Settings()


def test_a_named_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match="missing: named by --config, but there is no such file"):
        load(missing, {})
    with pytest.raises(ConfigError, match=r"missing: named by \$INSITU_CONFIG, but there is no such file"):
        load(None, {"INSITU_CONFIG": str(missing)})


def test_it_warns_of_what_is_allowed_and_hardly_meant() -> None:
    nobody = warnings(Settings())
    assert ["may_send" in nobody[0], "receives_results" in nobody[1], len(nobody)] == [True, True, 2]
    assert warnings(parse((PEER + "receives_results = true").encode(), "f")) == ()
    text = PEER.replace("10.0.0.1", "pacs.example") + "receives_results = true\n[receive]\ndurable = false"
    named, durable = warnings(parse(text.encode(), "f"))
    assert named.startswith('peer "A": host pacs.example is a name')
    assert durable.startswith("receive.durable is false")


def test_effective_has_every_option_and_changed_only_the_others() -> None:
    read = parse(b"[node]\nport = 104\nhost = '0.0.0.0'", "f")
    assert changed(read) == {"node": {"port": 104}}
    assert effective(read)["limits"] == Limits().model_dump()
    assert effective(read)["directories"]["state"] == "/var/lib/insitu"
    assert effective(read)["peer"] == []


@pytest.mark.parametrize(
    ("host", "accept_from", "check", "address", "expected"),
    [
        ("10.0.0.1", (), True, "10.0.0.1", True),
        ("10.0.0.1", (), True, "::ffff:10.0.0.1", True),
        ("10.0.0.1", (), True, "10.0.0.2", False),
        ("10.0.0.1", (), False, "10.0.0.2", True),
        ("10.0.0.1", ("10.0.1.0/24",), True, "10.0.1.9", True),
        ("10.0.0.1", ("10.0.1.0/24",), True, "10.0.0.1", False),
        ("10.0.0.1", ("fd00::/8",), True, "fd00::1", True),
        ("10.0.0.1", ("fd00::/8",), True, "10.0.0.1", False),
        ("pacs.example", (), True, "10.9.9.9", True),
        ("pacs.example", ("10.0.0.1",), True, "10.9.9.9", False),
        ("fd00::1", (), True, "fd00::1", True),
        ("fd00::1", (), True, "fd00::2", False),
    ],
)
def test_a_peer_may_call_from_its_own_addresses_only(
    host: str, accept_from: tuple[str, ...], check: bool, address: str, expected: bool
) -> None:
    peer = Peer(name="A", ae_title="A", host=host, port=104, accept_from=accept_from, address_check=check)
    assert peer.may_call_from(address) is expected


def test_spaces_around_an_ae_title_mean_nothing() -> None:
    assert check_ae_title(" A B ") == "A B"
    assert parse(b'[node]\nae_title = " X "', "f").node.ae_title == "X"


@pytest.mark.parametrize(
    "host", ["a", "pacs-1.example.org.", "my_pacs", "10.0.0.1", "::1", "fe80::1%eth0", "3com.x"]
)
def test_a_host_name_or_address_is_accepted(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host", ["", "-a", "a-", "a..b", "1.2.3", "1.2.3.4.5", "a/b", "a:b", "x" * 64, "ä", "a\n"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="neither a host name nor an IP address"):
        check_host(host)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3:104:PACS", Address("10.1.2.3", 104, "PACS")),
        ("pacs:104:A:B C", Address("pacs", 104, "A:B C")),
        ("[::1]:11112:PACS", Address("::1", 11112, "PACS")),
    ],
)
def test_an_address_is_read_and_written(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pacs", "is not HOST:PORT:AET"),
        ("pacs:104", "is not HOST:PORT:AET"),
        ("::1:104:PACS", "'' is no host name"),
        (":104:PACS", "'' is no host name"),
        ("pacs:0:A", "port '0' is not a number from 1 to 65535"),
        ("pacs:65536:A", "port '65536' is not"),
        ("pacs:１０:A", "port '１０' is not"),  # noqa: RUF001 - digits, but not ASCII ones
        ("pacs:104:", "AE title '' is not"),
        ("pacs:104:SEVENTEEN_LETTERS", "AE title 'SEVENTEEN_LETTERS' is not"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_part_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_address(text)


def test_an_address_is_within_itself_and_its_networks_only() -> None:
    assert is_within("10.0.0.1", "10.0.0.1")
    assert not is_within("10.0.0.1", "10.0.0.0")
    assert is_within("::ffff:10.0.0.1", "10.0.0.0/8")
