"""The finding where the launcher does not answer."""

from __future__ import annotations

from http import HTTPStatus

from flower_proxy.check.client import Answer, Target
from flower_proxy.check.evidence import path_of, resolve
from flower_proxy.check.findings import Finding, Status
from flower_proxy.check.report import PATH


def not_reached(answer: Answer, health: Answer, target: Target, user: str | None) -> Finding:
    """Explain why the answer is not the launcher's.

    :param answer: to the request for the launcher's report.
    :param health: to the request for Flower's health check.
    :param user: whose credentials were sent; None if none were.
    """
    return Finding("launcher", Status.FAILED, *_explain(answer, health, target, user))


def timed_out(message: str) -> Finding:
    """Report that all requests together took too long."""
    remedy = "look into the logs of the proxy and of flower-proxy for what takes so long, and check again"
    return Finding("launcher", Status.FAILED, message, remedy)


def _explain(answer: Answer, health: Answer, target: Target, user: str | None) -> tuple[str, str]:
    if answer.problem:
        return answer.problem, ""
    server = answer.headers.get("server", "").partition("/")[0] or "something"
    line = _first_line(answer)
    if answer.is_redirect:
        return _redirected(resolve(str(target), answer.headers.get("location", "")), target)
    match answer.status:
        case HTTPStatus.UNAUTHORIZED:
            return _unauthorized(answer.headers.get("www-authenticate", ""), user)
        case HTTPStatus.FORBIDDEN | HTTPStatus.TOO_MANY_REQUESTS:
            return (f"{answer}: {line}", "") if line else (str(answer), f"{server} refuses: look into its log")
        case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.GATEWAY_TIMEOUT:
            return (
                f"{server} answers {answer}: it does not reach flower-proxy",
                "start flower-proxy, and compare the address that it prints with the one that the proxy passes on to",
            )
        case HTTPStatus.BAD_REQUEST:
            return f"{answer}: {line or 'is it https:// there?'}", ""
    if health.is_ok and health.text.strip() == "OK":
        return f"Flower answers at {target}, but not flower-proxy", "start flower-proxy in place of celery flower"
    if 'name="flower-page"' in answer.text:
        return (
            f"Flower answers, but finds no page at {target}",
            f"start flower-proxy with --url_prefix={target.prefix}",
        )
    return (
        f"{server} answers {answer}, which is not Flower",
        f"look for a mistake in the address; otherwise let the proxy pass {target.prefix}/ on to flower-proxy",
    )


def _redirected(leads_to: str, target: Target) -> tuple[str, str]:
    if path_of(leads_to).endswith(PATH):
        return f"{target} leads to {leads_to.removesuffix(PATH)}/", "check that address"
    # The query of a login page carries states and client IDs, which do not belong in a report
    return (
        f"a page to log in at, {leads_to.partition('?')[0]}, is in front of Flower",
        "check an address at which Flower itself asks for a password, such as the one that the proxy passes on to",
    )


def _unauthorized(challenge: str, user: str | None) -> tuple[str, str]:
    if 'realm="flower"' not in challenge:
        scheme = challenge.partition(" ")[0] or "somebody"
        return (
            f"the proxy asks for a password of its own ({scheme}), and does not take this one",
            "use one file of users for both, as examples/nginx/auth_basic.conf does",
        )
    if user is None:
        return "a password is asked for", "say who you are: --user NAME"
    return (
        f"the password of {user}, or the name, is wrong",
        "try again; the one that is made up is in Flower's first lines",
    )


def _first_line(answer: Answer) -> str:
    if not answer.headers.get("content-type", "").startswith("text/plain"):
        return ""
    return answer.text.strip().partition("\n")[0][:300]
