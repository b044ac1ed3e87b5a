"""``flower-proxy config``: what it prints, and what it refuses. That it works, `tests.browser.test_proxies` shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from flower_proxy.deploy.targets import PROXY_OPTIONS, TARGETS
from tests.support.configurations import BY_HAND, EXAMPLES, config, documents, printed
from tests.support.processes import PROJECT

FOLDER = PROJECT / "examples"
SCHEMAS = Path(__file__).with_name("schemas")
PROXIES = [name for name, target in TARGETS.items() if target.is_proxy]
PASSWORD = "--proxy_basic_auth --auth_file=/etc/flower/htpasswd"
PROVIDER = "--forward_auth=http://127.0.0.1:4180 --auth_header=X-Forwarded-User"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_is_printed(name: str) -> None:
    """Where this fails: ``python -m tests.support.configurations``."""
    assert (FOLDER / name).read_text() == printed(EXAMPLES[name])


def test_no_example_is_left_over() -> None:
    folders = {Path(name).parent for name in EXAMPLES}
    files = {str(file.relative_to(FOLDER)) for folder in folders for file in (FOLDER / folder).iterdir()}
    assert {file for file in files if not file.endswith("README.md")} == {*EXAMPLES, *BY_HAND}


REFUSED = [
    ("", "TARGET: '' is none of nginx, apache, "),
    ("ngin", "TARGET: 'ngin' is none of nginx, apache, "),
    ("nginx --url_prefix=/a/../b", "--url_prefix: '/a/../b' is not a path such as /flower"),
    ("nginx --url_prefix=/fl%20ower", "--url_prefix: '/fl%20ower' is not a path of letters"),
    ("""nginx '--server_name=a;b'""", "--server_name: 'a;b' is not a host's name"),
    ("nginx '--server_name=a b'", "--server_name: 'a b' is not a host's name"),
    ("nginx --unix_socket=flower.sock", "--unix_socket: 'flower.sock' is not an absolute path"),
    ("nginx '--unix_socket=/run/a b'", "--unix_socket: '/run/a b' is not an absolute path"),
    ("nginx --forward_auth=127.0.0.1:4180", "--forward_auth: '127.0.0.1:4180' is not where the identity provider"),
    (f"nginx {PROVIDER} --forward_auth=http://a:1/path", "--forward_auth: 'http://a:1/path' is not where"),
    ("nginx --auth_header='X$user' --proxy_basic_auth", "--auth_header: 'X$user' is not a header of letters"),
    ("nginx --viewers='a\nb'", "--viewers: 'a\\nb': a line break"),
    (f"nginx --queues={'x' * 5000}", "--queues: the command has more than 4000 bytes; set the option in --conf"),
    ("nginx --server_name=-x.example", "--server_name: '-x.example' is not a host's name"),
    ("nginx --address=1.2.3.4:80", "--address: '1.2.3.4:80' is not an address to listen on"),
    (f"nginx --unix_socket=/{'x' * 90}", f"--unix_socket: '/{'x' * 90}' is not an absolute path"),
    (f"nginx {PROVIDER} --forward_auth=http://a:99999", "--forward_auth: 'http://a:99999' is not where"),
    ("nginx --strip", "--strip: there is nothing to strip; add --url_prefix"),
    ("nginx --port=0", "--port: 0 is a free port, but the proxy has to know which"),
    ("nginx --certfile=/a --keyfile=/b", "--certfile: TLS is the proxy's part here; leave it out, and add --tls"),
    ("nginx --auth_header=X-Forwarded-User", "--auth_header: nobody would ask who people are; add --forward_auth=URL"),
    ("nginx --no_auth", "--no_auth: nobody would ask who people are; add --forward_auth=URL"),
    ("nginx --forward_auth=http://a", "--forward_auth: Flower would ask once more; add --auth_header"),
    (f"nginx {PROVIDER} --proxy_basic_auth", "--proxy_basic_auth: --forward_auth asks already who it is"),
    ("nginx --proxy_basic_auth", "--proxy_basic_auth: Flower has to know these users too; add --auth_file=PATH"),
    ("nginx --trusted_proxies=10.0.0.1", "--trusted_proxies: the proxy comes from 127.0.0.1 here; add it"),
    ("nginx --unix_socket=/s --trusted_proxies=127.0.0.1", "--trusted_proxies: the proxy comes from unix here; add it"),
    ("nginx --url_perfix=flower", "there is no option --url_perfix; did you mean --url_prefix?"),
    ("nginx --basic_auth=me", "--basic_auth: "),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words[:60] or "nothing" for words, _ in REFUSED])
def test_what_cannot_be_had_is_one_line(words: str, message: str) -> None:
    result = config(*shlex.split(words))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"flower-proxy: {message}")
    assert result.stderr.count("\n") == 1


ALONE = {
    "server_name": "--server_name=flower.test",
    "unix_socket": "--unix_socket=/run/flower.sock",
    "forward_auth": "--forward_auth=http://127.0.0.1:4180",
    # Flower would not start with these either
    "proxy_basic_auth": "--proxy_basic_auth --no_auth --auth_file=/etc/flower/htpasswd",
}
"""Options without those that they need."""


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, name) for target in TARGETS for name in sorted(PROXY_OPTIONS - TARGETS[target].takes)],
)
def test_an_option_that_is_not_for_the_target_is_refused_at_once(target: str, name: str) -> None:
    result = config(target, *ALONE.get(name, f"--{name}").split())
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"flower-proxy: --{name}: not available for {target}; leave it out\n"


@pytest.mark.parametrize("target", PROXIES)
def test_the_readme_says_what_a_proxy_can_do(target: str) -> None:
    readme = (PROJECT / "examples" / "README.md").read_text()
    (options,) = re.findall(r"^\| target \| (.*--.*) \| examples \|$", readme, re.MULTILINE)
    (cells,) = re.findall(rf"^\| `{target}` \| (.*) \| \[.*\) \|$", readme, re.MULTILINE)
    names = re.findall(r"--(\w+)", options)
    said = {name for name, cell in zip(names, cells.split(" | "), strict=True) if cell.startswith("yes")}
    assert said == TARGETS[target].takes - {"server_name"}


@pytest.mark.parametrize("target", TARGETS)
def test_no_secret_is_printed(target: str) -> None:
    given = "--basic_auth=me:hush --cookie_secret=hush --metrics_auth=prometheus:hush --broker=redis://:hush@host"
    text = printed(f"{target} {given} --broker_transport_options=" + r"""'{"master_name": "hush"}'""")
    assert "hush" not in text


def test_secrets_are_named() -> None:
    text = printed("nginx --basic_auth=me:hidden --broker=redis://:hidden@host")
    assert "\n# with CELERY_BROKER_URL, FLOWER_BASIC_AUTH in its environment.\n" in text


def command(text: str) -> str:
    """The command that the comment names."""
    return next(line for line in text.splitlines() if "flower-proxy " in line).lstrip("# ")


@pytest.mark.parametrize(
    ("words", "started"),
    [
        ("", "flower-proxy -A server --address=127.0.0.1"),
        ("-A shop.app --url-prefix /flower/", "flower-proxy -A shop.app --address=127.0.0.1 --url_prefix=/flower/"),
        ("--url_prefix=flower --strip", "flower-proxy -A server --address=127.0.0.1"),
        ("--address=10.0.0.5 --port=80", "flower-proxy -A server --port=80 --address=10.0.0.5"),
        ("--viewers=a,b --read-only", "flower-proxy -A server --address=127.0.0.1 --read_only --viewers=a,b"),
        ("--enable-events=no", "flower-proxy -A server --address=127.0.0.1 --enable_events=false"),
        ("-b redis://host", "flower-proxy --address=127.0.0.1"),
        ("-q --workdir=/srv", "flower-proxy -A server --workdir /srv --quiet --address=127.0.0.1"),
        (
            "--address=10.0.0.5 --trusted_proxies=10.0.0.1",
            "flower-proxy -A server --address=10.0.0.5 --trusted_proxies=10.0.0.1",
        ),
    ],
)
def test_the_command_that_belongs_to_it_is_named(words: str, started: str) -> None:
    assert command(printed(f"nginx {words}")) == started


def test_settings_come_from_environment_and_file_too(tmp_path: Path) -> None:
    conf = tmp_path / "settings.py"
    conf.write_text("port = 5678\n")
    result = config("nginx", f"--conf={conf}", env={"FLOWER_URL_PREFIX": "monitor"})
    assert "location /monitor/ {" in result.stdout
    assert "proxy_pass http://127.0.0.1:5678;" in result.stdout


@pytest.mark.parametrize(
    ("address", "upstream"),
    [("0.0.0.0", "127.0.0.1:5555"), ("::", "127.0.0.1:5555"), ("10.0.0.5", "10.0.0.5:5555"), ("::1", "[::1]:5555")],
)
def test_the_proxy_goes_where_flower_listens(address: str, upstream: str) -> None:
    assert f"proxy_pass http://{upstream};" in printed(f"nginx --address={address}")


def test_a_proxy_elsewhere_has_to_be_trusted() -> None:
    assert "--trusted_proxies=" in printed("nginx --address=10.0.0.5")
    assert "--trusted_proxies=" in printed("ingress-nginx")
    assert "--trusted_proxies=" not in printed("nginx")


VARIANTS = [
    "",
    "--url_prefix=flower",
    "--url_prefix=flower --strip",
    "--tls",
    "--snippet",
    PASSWORD,
    f"{PROVIDER} --snippet",
]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (target, words)
        for target in PROXIES
        for words in VARIANTS
        if PROXY_OPTIONS & {*re.findall(r"--(\w+)", words)} <= TARGETS[target].takes
    ],
)
def test_what_is_printed_has_no_gaps(target: str, words: str) -> None:
    text = printed(f"{target} {words}")
    assert not re.search(r"\n\n\n|[ \t]\n|\{\{|%\}", text)
    assert text.startswith("# Flower at http")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


# Traefik and a cluster cannot be had here: their files are held against schemas of the keys that are used


TRAEFIK = ["", "--url_prefix=flower", "--url_prefix=flower --strip", f"--tls {PASSWORD}", f"--tls {PROVIDER}"]
INGRESS = ["", "--url_prefix=flower", "--url_prefix=flower --strip", f"--tls {PROVIDER}"]


def faults(document: Any, schema: str) -> list[str]:
    validator = Draft202012Validator(json.loads((SCHEMAS / schema).read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("words", TRAEFIK)
def test_traefik_s_file_fits_its_schema(words: str) -> None:
    document = documents(printed(f"traefik {words}"))[0]
    assert not faults(document, "traefik.json")
    http = document["http"]
    routers = http["routers"].values()
    named = {name for router in routers for name in router["middlewares"]}
    # what is named is there, and what is there is named
    assert named == set(http["middlewares"])
    assert {router["service"] for router in routers} == set(http["services"])
    balancers = [service["loadBalancer"] for service in http["services"].values()]
    assert {balancer["serversTransport"] for balancer in balancers} == set(http["serversTransports"])


@pytest.mark.parametrize("words", INGRESS)
def test_the_ingress_fits_its_schema(words: str) -> None:
    objects = documents(printed(f"ingress-nginx {words}"))
    assert [document["kind"] for document in objects] == ["ConfigMap", "Ingress", "Ingress"]
    for document in objects:
        assert not faults(document, "ingress-nginx.json")
