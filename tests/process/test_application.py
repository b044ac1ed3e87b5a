"""Errors in the Celery application, its configuration and the client library of its broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import command
from tests.support.command import APPLICATION, started
from tests.support.forks import run, run_python
from tests.support.processes import request

BROKEN_SETTINGS = """\
import os

broker_url = CELERY_BROKER_URL = "memory://"
DATABASE = os.environ["DATABASE_URL"]
"""

FROM_MODULE = 'app.config_from_object("server.settings")\n'
FROM_DJANGO = """\
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
READ_AT_IMPORT = f"{FROM_DJANGO}if app.conf.task_always_eager: pass\n"
NOT_CONFIGURED = 'app.config_from_object("django.conf:settings", namespace="CELERY")\n'
OLD_ON_CONFIGURE = """\
def on_configure():
    raise KeyError("DATABASE_URL")
app.on_configure = on_configure
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder with a package ``server``, which has an application and invalid settings."""
    package = tmp_path / "server"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "celery.py").write_text(APPLICATION)
    (package / "settings.py").write_text(BROKEN_SETTINGS)
    return tmp_path


def refused(arguments: list[str], project: Path) -> str:
    """Return the line of the error for invalid input."""
    result = run(arguments, project)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.startswith("flower-proxy: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("flower-proxy: ").rstrip()


@pytest.mark.parametrize(
    ("configuration", "settings", "line"),
    [
        pytest.param(FROM_MODULE, BROKEN_SETTINGS, "KeyError: 'DATABASE_URL' (SETTINGS, line 4)", id="module"),
        pytest.param(FROM_DJANGO, BROKEN_SETTINGS, "KeyError: 'DATABASE_URL' (SETTINGS, line 4)", id="django"),
        pytest.param(
            READ_AT_IMPORT, BROKEN_SETTINGS, "KeyError: 'DATABASE_URL' (SETTINGS, line 4)", id="django-read-at-import"
        ),
        pytest.param(OLD_ON_CONFIGURE, "", "KeyError: 'DATABASE_URL' (CELERY, line 5)", id="on-configure"),
        pytest.param(NOT_CONFIGURED, "", "ImproperlyConfigured: Requested settings, ", id="django-not-configured"),
        pytest.param(FROM_MODULE, "import lacking", "ModuleNotFoundError: No module named 'lacking' (SETTINGS, line 1)",
                     id="import"),
        pytest.param(FROM_MODULE, "x = 1\nx.y", "AttributeError: 'int' object has no attribute 'y' (SETTINGS, line 2)",
                     id="attribute"),
        pytest.param(FROM_MODULE, "x =", "SyntaxError: invalid syntax (SETTINGS, line 1)", id="syntax"),
        pytest.param(
            FROM_DJANGO,
            "from django.core.exceptions import ImproperlyConfigured\n"
            "try:\n    {}['X']\nexcept KeyError as error:\n    raise ImproperlyConfigured('set\\nX') from error\n",
            "ImproperlyConfigured: set X (SETTINGS, line 5)",
            id="raised-by-the-settings",
        ),
    ],
)  # fmt: skip
def test_an_error_in_the_settings_is_shown_with_file_and_line(
    server: Path, configuration: str, settings: str, line: str
) -> None:
    celery, module = server / "server" / "celery.py", server / "server" / "settings.py"
    celery.write_text(APPLICATION + configuration)
    module.write_text(settings)
    error = refused(["-A", "server"], server)
    assert error.startswith("-A: 'server'")
    assert line.replace("SETTINGS", str(module)).replace("CELERY", str(celery)) in error


def test_a_new_process_shows_the_error_like_a_fork(server: Path) -> None:
    (server / "server" / "celery.py").write_text(APPLICATION + FROM_MODULE)
    result = command.run(["-A", "server"], server)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"flower-proxy: {refused(['-A', 'server'], server)}\n"


def test_an_error_in_a_configuration_module_is_shown_without_an_application(server: Path) -> None:
    error = refused(["--broker=memory://", "--config=server.settings"], server)
    assert error.endswith(f"KeyError: 'DATABASE_URL' ({server / 'server' / 'settings.py'}, line 4)")


def test_an_error_in_the_settings_is_shown_by_the_celery_subcommand(server: Path) -> None:
    (server / "server" / "celery.py").write_text(APPLICATION + FROM_MODULE)
    result = run_python(["-m", "celery", "-A", "server", "flower-proxy"], server)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: Celery's configuration cannot be loaded: KeyError: 'DATABASE_URL' (")


@pytest.mark.parametrize("broken", ["settings", "celery"])
def test_debug_shows_the_traceback(server: Path, broken: str) -> None:
    (server / "server" / "celery.py").write_text(APPLICATION + FROM_MODULE)
    (server / "server" / f"{broken}.py").write_text(BROKEN_SETTINGS)
    result = run(["-A", "server.celery", "--debug"], server)
    assert result.returncode == 2
    assert 'DATABASE = os.environ["DATABASE_URL"]' in result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"({server / 'server' / f'{broken}.py'}, line 4)")


def test_a_failed_receiver_of_on_configure_is_logged_without_preventing_the_start(tmp_path: Path) -> None:
    receiver = '@app.on_configure.connect\ndef load(**_):\n    raise KeyError("DATABASE_URL")\n'
    (tmp_path / "shop.py").write_text(APPLICATION + receiver)
    with started(["flower_proxy", "-A", "shop", "--port=PORT"], tmp_path) as (_, _, log):
        assert "raised: KeyError('DATABASE_URL')" in log.read_text()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("shop:create_app", "-A: 'shop:create_app' is a function, and application factories are not called; name"),
        ("shop.create_app", "-A: 'shop.create_app' is a function, and application factories are not called; name"),
        ("shop", "-A: 'shop' contains no Celery application; name it with -A MODULE:ATTRIBUTE"),
        ("shop:nothing", "-A: module 'shop' has no attribute 'nothing'"),
        ("server", "-A: 'server' cannot be imported: KeyError: 'DATABASE_URL' ("),
    ],
)
def test_a_missing_application_is_an_error(server: Path, name: str, line: str) -> None:
    (server / "shop.py").write_text("from celery import Celery\ndef create_app(): return Celery('x')\n")
    (server / "server" / "celery.py").write_text(BROKEN_SETTINGS)
    assert refused(["-A", name], server).startswith(line)


def test_an_import_error_in_the_celery_module_of_a_package_is_shown(server: Path) -> None:
    module = server / "server" / "celery.py"
    module.write_text("import lacking\n")
    error = refused(["-A", "server"], server)
    assert error.endswith(f"ModuleNotFoundError: No module named 'lacking' ({module}, line 1)")


WITHOUT_LIBRARY = """\
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from flower_proxy.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("library", "broker", "requirement"),
    [
        pytest.param("redis", "redis://:TOPSECRET@localhost:1/0", "celery[redis]", id="redis"),
        pytest.param("redis", "rediss://:TOPSECRET@localhost:1/0", "celery[redis]", id="redis-over-tls"),
        pytest.param("redis", "redis+socket:///run/redis.sock", "celery[redis]", id="redis-over-unix-socket"),
        pytest.param("redis", "sentinel://localhost:1", "celery[redis]", id="redis-sentinel"),
        pytest.param("boto3,botocore", "sqs://", "celery[sqs]", id="sqs"),
        pytest.param("kazoo", "zookeeper://localhost:1", "celery[zookeeper]", id="zookeeper"),
        pytest.param("azure", "azureservicebus://a:b@c", "kombu[azureservicebus]", id="extra-of-kombu-only"),
        pytest.param("confluent_kafka", "confluentkafka://localhost:1", "kombu[confluentkafka]", id="kafka"),
    ],
)
def test_a_missing_client_library_is_an_error_with_its_extra(
    tmp_path: Path, library: str, broker: str, requirement: str
) -> None:
    result = run_python(["-c", WITHOUT_LIBRARY, library, "-b", broker], tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"flower-proxy: --broker: the client library for {broker.partition(':')[0]}:// cannot"
    )
    assert result.stderr.endswith(f'; run: pip install "{requirement}"\n')
    assert result.stderr.count("\n") == 1
    assert "TOPSECRET" not in result.stderr


HANDLER = "from tornado.web import RequestHandler\n\nclass Login(RequestHandler): pass\n"


def test_an_auth_provider_is_imported_after_the_application(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "portal.py").write_text(
        "from tornado.web import RequestHandler\nclass Login(RequestHandler): pass\n"
    )
    (tmp_path / "shop.py").write_text(f"import sys\nsys.path.append('lib')\n{APPLICATION}")
    options = ["--auth_provider=portal.Login", "--auth=me@example.com"]
    words = ["flower_proxy", "-A", "shop", "--port=PORT", *options]
    with started(words, tmp_path, FLOWER_NO_AUTH="false") as (address, _, _):
        # The base handler of Tornado does not implement GET
        assert request(address, "/login").status == 405


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("lacking.Login", "'lacking.Login' cannot be imported: No module named 'lacking'"),
        ("shop.Login", "'shop.Login' cannot be imported: "),
        ("shop.app", "'shop.app' is not a RequestHandler class"),
    ],
)
def test_an_invalid_auth_provider_is_an_error(tmp_path: Path, provider: str, reason: str) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    error = refused(["-A", "shop", f"--auth_provider={provider}", "--auth=me@example.com"], tmp_path)
    assert error.startswith(f"--auth_provider: {reason}")
