"""The output and errors of ``flower-proxy config``; `tests.browser.test_proxies` runs the configurations."""

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
def test_examples_are_up_to_date(name: str) -> None:
    """Run ``python -m tests.support.configurations`` to update them."""
    assert (FOLDER / name).read_text() == printed(EXAMPLES[name])


def test_there_are_no_other_examples() -> None:
    folders = {Path(name).parent for name in EXAMPLES}
    files = {str(file.relative_to(FOLDER)) for folder in folders for file in (FOLDER / folder).iterdir()}
    assert {file for file in files if not file.endswith("README.md")} == {*EXAMPLES, *BY_HAND}


REFUSED = [
    ("", "TARGET: '' is not one of nginx, apache, "),
    ("ngin", "TARGET: 'ngin' is not one of nginx, apache, "),
    ("nginx --url_prefix=/a/../b", "--url_prefix: '/a/../b' is not a path such as /flower"),
    ("nginx --url_prefix=/fl%20ower", "--url_prefix: '/fl%20ower' is not a path of letters"),
    ("""nginx '--server_name=a;b'""", "--server_name: 'a;b' is not a host name"),
    ("nginx '--server_name=a b'", "--server_name: 'a b' is not a host name"),
    ("nginx --unix_socket=flower.sock", "--unix_socket: 'flower.sock' is not an absolute path"),
    ("nginx '--unix_socket=/run/a b'", "--unix_socket: '/run/a b' is not an absolute path"),
    ("nginx --forward_auth=127.0.0.1:4180", "--forward_auth: '127.0.0.1:4180' is not the base URL of"),
    (f"nginx {PROVIDER} --forward_auth=http://a:1/path", "--forward_auth: 'http://a:1/path' is not the base URL"),
    ("nginx --auth_header='X$user' --proxy_basic_auth", "--auth_header: 'X$user' is not a header name"),
    ("nginx --viewers='a\nb'", "--viewers: 'a\\nb' contains a line break"),
    (f"nginx --queues={'x' * 5000}", "--queues: the command exceeds 4000 bytes; set it in the file of --conf"),
    ("nginx --server_name=-x.example", "--server_name: '-x.example' is not a host name"),
    ("nginx --address=1.2.3.4:80", "--address: '1.2.3.4:80' is not an address to listen on"),
    (f"nginx --unix_socket=/{'x' * 90}", f"--unix_socket: '/{'x' * 90}' is not an absolute path"),
    (f"nginx {PROVIDER} --forward_auth=http://a:99999", "--forward_auth: 'http://a:99999' is not the base URL"),
    ("nginx --strip", "--strip: there is no prefix; add --url_prefix"),
    ("nginx --port=0", "--port: 0 selects a random port, which the proxy cannot know"),
    ("nginx --certfile=/a --keyfile=/b", "--certfile: the proxy terminates TLS; leave it out, and add --tls"),
    ("nginx --auth_header=X-Forwarded-User", "--auth_header: the proxy must authenticate users; add --forward_auth"),
    ("nginx --no_auth", "--no_auth: the proxy must authenticate users; add --forward_auth"),
    ("nginx --forward_auth=http://a", "--forward_auth: Flower would authenticate again; add --auth_header"),
    (f"nginx {PROVIDER} --proxy_basic_auth", "--proxy_basic_auth and --forward_auth: both authenticate users"),
    ("nginx --proxy_basic_auth", "--proxy_basic_auth: the proxy and Flower need a common password file"),
    ("nginx --trusted_proxies=10.0.0.1", "--trusted_proxies: the proxy connects from 127.0.0.1; add it"),
    ("nginx --unix_socket=/s --trusted_proxies=127.0.0.1", "--trusted_proxies: the proxy connects from unix; add it"),
    ("nginx --url_perfix=flower", "--url_perfix: unknown option; did you mean --url_prefix?"),
    ("nginx --basic_auth=me", "--basic_auth: "),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words[:60] or "nothing" for words, _ in REFUSED])
def test_an_invalid_deployment_is_a_one_line_error(words: str, message: str) -> None:
    result = config(*shlex.split(words))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"flower-proxy: {message}")
    assert result.stderr.count("\n") == 1


ALONE = {
    "server_name": "--server_name=flower.test",
    "unix_socket": "--unix_socket=/run/flower.sock",
    "forward_auth": "--forward_auth=http://127.0.0.1:4180",
    # Flower refuses this combination at start-up
    "proxy_basic_auth": "--proxy_basic_auth --no_auth --auth_file=/etc/flower/htpasswd",
}
"""Options without the options that they require."""


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, name) for target in TARGETS for name in sorted(PROXY_OPTIONS - TARGETS[target].takes)],
)
def test_an_unsupported_option_is_an_error(target: str, name: str) -> None:
    result = config(target, *ALONE.get(name, f"--{name}").split())
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"flower-proxy: --{name}: not supported for {target}; leave it out\n"


@pytest.mark.parametrize("target", PROXIES)
def test_the_readme_lists_the_supported_options(target: str) -> None:
    readme = (PROJECT / "examples" / "README.md").read_text()
    (options,) = re.findall(r"^\| target \| (.*--.*) \| examples \|$", readme, re.MULTILINE)
    (cells,) = re.findall(rf"^\| `{target}` \| (.*) \| \[.*\) \|$", readme, re.MULTILINE)
    names = re.findall(r"--(\w+)", options)
    documented = {name for name, cell in zip(names, cells.split(" | "), strict=True) if cell.startswith("yes")}
    assert documented == TARGETS[target].takes - {"server_name"}


@pytest.mark.parametrize("target", TARGETS)
def test_secrets_are_not_printed(target: str) -> None:
    given = "--basic_auth=me:hush --cookie_secret=hush --metrics_auth=prometheus:hush --broker=redis://:hush@host"
    text = printed(f"{target} {given} --broker_transport_options=" + r"""'{"master_name": "hush"}'""")
    assert "hush" not in text


def test_variables_for_secrets_are_listed() -> None:
    text = printed("nginx --basic_auth=me:hidden --broker=redis://:hidden@host")
    assert "\n# with CELERY_BROKER_URL, FLOWER_BASIC_AUTH in its environment.\n" in text


def command(text: str) -> str:
    """Return the command in the first comment."""
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
def test_the_matching_command_is_printed(words: str, started: str) -> None:
    assert command(printed(f"nginx {words}")) == started


def test_settings_are_read_from_environment_and_file(tmp_path: Path) -> None:
    conf = tmp_path / "settings.py"
    conf.write_text("port = 5678\n")
    result = config("nginx", f"--conf={conf}", env={"FLOWER_URL_PREFIX": "monitor"})
    assert "location /monitor/ {" in result.stdout
    assert "proxy_pass http://127.0.0.1:5678;" in result.stdout


@pytest.mark.parametrize(
    ("address", "upstream"),
    [("0.0.0.0", "127.0.0.1:5555"), ("::", "127.0.0.1:5555"), ("10.0.0.5", "10.0.0.5:5555"), ("::1", "[::1]:5555")],
)
def test_the_upstream_is_the_address_of_flower(address: str, upstream: str) -> None:
    assert f"proxy_pass http://{upstream};" in printed(f"nginx --address={address}")


def test_a_remote_proxy_must_be_trusted() -> None:
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
def test_the_output_is_formatted(target: str, words: str) -> None:
    text = printed(f"{target} {words}")
    assert not re.search(r"\n\n\n|[ \t]\n|\{\{|%\}", text)
    assert text.startswith("# Flower at http")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


# The files of Traefik and Kubernetes are validated against schemas of the used keys, as tests do not run these programs


TRAEFIK = ["", "--url_prefix=flower", "--url_prefix=flower --strip", f"--tls {PASSWORD}", f"--tls {PROVIDER}"]
INGRESS = ["", "--url_prefix=flower", "--url_prefix=flower --strip", f"--tls {PROVIDER}"]


def faults(document: Any, schema: str) -> list[str]:
    validator = Draft202012Validator(json.loads((SCHEMAS / schema).read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("words", TRAEFIK)
def test_the_traefik_file_is_valid(words: str) -> None:
    document = documents(printed(f"traefik {words}"))[0]
    assert not faults(document, "traefik.json")
    http = document["http"]
    routers = http["routers"].values()
    named = {name for router in routers for name in router["middlewares"]}
    # Definitions and references match
    assert named == set(http["middlewares"])
    assert {router["service"] for router in routers} == set(http["services"])
    balancers = [service["loadBalancer"] for service in http["services"].values()]
    assert {balancer["serversTransport"] for balancer in balancers} == set(http["serversTransports"])


@pytest.mark.parametrize("words", INGRESS)
def test_the_ingress_is_valid(words: str) -> None:
    objects = documents(printed(f"ingress-nginx {words}"))
    assert [document["kind"] for document in objects] == ["ConfigMap", "Ingress", "Ingress"]
    for document in objects:
        assert not faults(document, "ingress-nginx.json")
