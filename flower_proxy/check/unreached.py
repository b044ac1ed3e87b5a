"""The finding if the launcher does not answer."""

from __future__ import annotations

from http import HTTPStatus

from flower_proxy.check.client import Response, Target
from flower_proxy.check.evidence import path_of, resolve
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.report import PATH


def not_reached(response: Response, health: Response, target: Target, user: str | None) -> Finding:
    """Explain why the response is not the launcher's.

    :param response: to the request for the launcher's report.
    :param health: to the request for Flower's health check.
    :param user: the user whose credentials were sent; None without credentials.
    """
    return Finding("launcher", Status.FAILED, *_explain(response, health, target, user))


def timed_out(message: str) -> Finding:
    """Report that the requests together took too long."""
    remedy = "see the logs of the proxy and of flower-proxy for slow requests, and check again"
    return Finding("launcher", Status.FAILED, message, remedy)


def _explain(response: Response, health: Response, target: Target, user: str | None) -> tuple[str, str]:
    if response.problem:
        return response.problem, ""
    server = response.headers.get("server", "").partition("/")[0] or "an unknown server"
    line = _first_line(response)
    if response.is_redirect:
        return _redirected(resolve(str(target), response.headers.get("location", "")), target)
    match response.status:
        case HTTPStatus.UNAUTHORIZED:
            return _unauthorized(response.headers.get("www-authenticate", ""), user)
        case HTTPStatus.FORBIDDEN | HTTPStatus.TOO_MANY_REQUESTS:
            return (f"{response}: {line}", "") if line else (f"{server} answers {response}", "see its log")
        case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.GATEWAY_TIMEOUT:
            return (
                f"{server} answers {response}: it does not reach flower-proxy",
                "start flower-proxy, and compare the address that it prints with the proxy's upstream address",
            )
        case HTTPStatus.BAD_REQUEST:
            return f"{response}: {line or 'use https:// if the server expects TLS'}", ""
    if health.is_ok and health.text.strip() == "OK":
        return f"Flower answers at {target}, but without flower-proxy", "start flower-proxy instead of 'celery flower'"
    if 'name="flower-page"' in response.text:
        return (
            f"Flower answers, but has no page at {target}",
            f"start flower-proxy with --url_prefix={target.prefix}",
        )
    return (
        f"{server} answers {response}, but is not Flower",
        f"check the URL for mistakes, and configure the proxy to pass {target.prefix}/ on to flower-proxy",
    )


def _redirected(location: str, target: Target) -> tuple[str, str]:
    if path_of(location).endswith(PATH):
        return f"{target} redirects to {location.removesuffix(PATH)}/", "check that URL instead"
    # The query of a login page contains OAuth state and client ID, which do not belong in a report
    return (
        f"the proxy redirects to a login page, {location.partition('?')[0]}",
        "check an address without that login, such as the proxy's upstream address",
    )


def _unauthorized(challenge: str, user: str | None) -> tuple[str, str]:
    if 'realm="flower"' not in challenge:
        scheme = challenge.partition(" ")[0] or "unknown scheme"
        return (
            f"the proxy itself requires authentication ({scheme}), and rejects this request",
            "use one password file for the proxy and Flower, as in examples/nginx/auth_basic.conf",
        )
    if user is None:
        return "Flower requires authentication", "add --user NAME"
    return (
        f"wrong username or password (user {user})",
        "try again; flower-proxy prints a generated password at start-up",
    )


def _first_line(response: Response) -> str:
    if not response.headers.get("content-type", "").startswith("text/plain"):
        return ""
    return response.text.strip().partition("\n")[0][:300]
