"""The checks of a deployment.

Each function is one check and gives the finding its name; the decorator lists the checks on which it depends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flower_proxy import __version__
from flower_proxy.check.client import Response, Target
from flower_proxy.check.evidence import ENCODED_PATH, LARGE_BODY, SPOOFED_HEADERS, Evidence, StaticFile, resolve
from flower_proxy.check.findings import Check, Checklist, Outcome, Problem, Status
from flower_proxy.check.remedies import Advice
from flower_proxy.check.report import PATH

MAX_CLOCK_SKEW = 16
"""Seconds; Celery warns beyond the same limit."""

_DIRECT = "there is no reverse proxy"

CHECKS = Checklist()
check = CHECKS.check


@check()
def launcher(evidence: Evidence, advice: Advice) -> Outcome:
    """Pass: without the launcher's report there is no evidence."""
    return f"flower-proxy answers at {evidence.target}"


# Public location


@check()
def trust(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that the reverse proxy is trusted if it sends forwarded headers."""
    report = evidence.report
    if report.trusted:
        return _DIRECT if evidence.direct else f"the reverse proxy at {report.peer} is trusted"
    if not report.headers:
        return f"{report.peer} is not trusted, and sends no forwarded headers"
    entries = ",".join((*report.trusted_proxies, report.peer))
    return Problem(
        f"{report.peer} is not trusted, so its headers are ignored: {', '.join(report.headers)}",
        f"start flower-proxy with --trusted_proxies={entries}",
    )


@check(trust)
def scheme(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that Flower sees the scheme of the URL."""
    expected, actual = evidence.target.scheme, evidence.report.scheme
    if expected == actual:
        return f"{actual}, as in the URL"
    remedy = advice.set_headers("X-Forwarded-Proto")
    return Problem(f"Flower sees the scheme {actual}, but the URL has {expected}", remedy)


@check(trust)
def host(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that Flower sees the host of the URL."""
    expected, actual = evidence.target.host, evidence.report.host
    if expected == actual:
        return f"{actual}, as in the URL"
    remedy = advice.set_headers("X-Forwarded-Host")
    return Problem(f"Flower sees the host {actual}, but the URL has {expected}", remedy)


@check(trust)
def prefix(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that Flower knows the prefix of the URL."""
    expected, actual = evidence.target.prefix, evidence.report.prefix
    if actual == expected:
        return f"{actual or '/'}, as in the URL"
    if actual is None and not expected:
        return "none, as in the URL"
    option = f"start flower-proxy with --url_prefix={expected}"
    remedy = option if evidence.direct else advice.set_headers("X-Forwarded-Prefix")
    if actual is None:
        message = "the proxy strips the prefix and does not forward it, so Flower falls back to relative links"
        return Problem(message, remedy, Status.WARNING)
    return Problem(f"Flower sees the prefix {actual or '/'}, but the URL has {expected or '/'}", remedy)


@check()
def slash(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that the prefix without a trailing slash redirects to the one with it."""
    response, target = evidence.without_slash, evidence.target
    if response is None:
        return "not needed without a prefix"
    location = resolve(f"{target.origin}{target.prefix}", response.headers.get("location", ""))
    if response.is_redirect and location == str(target):
        return f"{target.prefix} redirects to {target.prefix}/"
    if response.is_redirect:
        return Problem(f"{target.prefix} redirects to {location}, expected {target}", advice.line("slash"))
    return Problem(f"{target.prefix} does not redirect to {target.prefix}/: {response}", advice.line("slash"))


@check(trust)
def client(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that Flower sees the client's address, not the proxy's."""
    report = evidence.report
    if evidence.direct or report.client != report.peer or {"X-Forwarded-For", "Forwarded"} & report.headers.keys():
        return f"Flower sees your address as {report.client}"
    message = f"Flower sees every client's address as the proxy's, {report.peer}"
    return Problem(message, advice.set_headers("X-Forwarded-For"))


_HEADER_CHECKS: Mapping[str, Check] = {
    "X-Forwarded-For": client,
    "X-Forwarded-Proto": scheme,
    "X-Forwarded-Host": host,
    "X-Forwarded-Prefix": prefix,
}


@check(trust)
def forwarded(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that spoofed forwarded headers have no effect."""
    if evidence.direct:
        return _DIRECT
    # One finding per header is enough
    reported = {
        header
        for header, header_check in _HEADER_CHECKS.items()
        if header not in evidence.report.headers and header_check(evidence, advice).status is not Status.PASSED
    }
    accepted = [name for name in evidence.spoofed if name not in reported and _accepts_spoofed(evidence, name)]
    if accepted:
        return Problem(f"clients can spoof {', '.join(accepted)}", advice.set_headers(*accepted))
    return _unanswered(*evidence.spoofed.values()) or "spoofed headers have no effect"


def _accepts_spoofed(evidence: Evidence, name: str) -> bool:
    response, expected = evidence.spoofed[name], evidence.report
    actual = response.report
    if actual is None:
        # The launcher rejected the spoofed location or redirected to it
        return response.status in range(300, 500)
    if name == "X-Forwarded-For":
        # A proxy may append the client to the header, even if Flower trusts that client as a proxy
        return actual.client != expected.client and actual.headers.get(name, "").endswith(SPOOFED_HEADERS[name])
    if name == "Forwarded" and actual.client != expected.client:
        return True
    return (actual.scheme, actual.host, actual.prefix) != (expected.scheme, expected.host, expected.prefix)


def _unanswered(*responses: Response | None) -> Problem | None:
    """Return a warning if a response is missing, since that proves nothing."""
    problems = (response.problem for response in responses if response is not None and not response.status)
    return next((Problem(f"unknown: {problem}", "check again", Status.WARNING) for problem in problems), None)


# Pages and requests


@check(prefix)
def static(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that the files linked by Flower's page load, with types that browsers accept."""
    page = evidence.page
    if not page.is_ok or not evidence.static_files:
        return Problem(f"the page at {evidence.target} is not Flower's: {page}", advice.line("static"))
    for file in evidence.static_files:
        if message := _fault_of(file, evidence.target):
            return Problem(message, advice.line("large" if file.response and file.response.problem else "static"))
    return f"all {len(evidence.static_files)} files of the page load, with the correct Content-Type"


def _fault_of(file: StaticFile, target: Target) -> str:
    response = file.response
    if response is None:
        return f"the page links {file.path}, which is outside {target}"
    if not response.is_ok or response.problem:
        return f"{file.path} does not load: {response}"
    content_type = response.headers.get("content-type", "missing")
    accepted = file.expected_type in content_type
    return "" if accepted else f"browsers reject {file.path}: its Content-Type is {content_type}"


def _scripts_and_styles(evidence: Evidence) -> Iterator[tuple[StaticFile, Mapping[str, str]]]:
    return ((file, file.response.headers) for file in evidence.static_files if file.response and file.expected_type)


@check(static)
def compression(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that scripts and stylesheets are compressed."""
    size = sum(file.size for file, headers in _scripts_and_styles(evidence) if "content-encoding" not in headers)
    if size < LARGE_BODY:
        return "scripts and stylesheets are compressed"
    message = f"{size // 1000} kB of scripts and stylesheets are not compressed"
    return Problem(message, advice.line("compression"), Status.WARNING)


@check(static)
def cache(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that browsers may cache scripts and stylesheets."""
    for file, headers in _scripts_and_styles(evidence):
        control = headers.get("cache-control", "").lower().replace(" ", "").split(",")
        if {"no-store", "no-cache", "max-age=0"} & set(control) or not any("max-age" in part for part in control):
            message = f"browsers do not cache {file.path}: Cache-Control is {','.join(control) or 'missing'}"
            return Problem(message, advice.line("cache"), Status.WARNING)
    return "browsers cache scripts and stylesheets"


@check()
def encoding(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that an encoded slash in a path stays encoded."""
    report = evidence.encoded.report
    if report is not None and report.path == PATH + ENCODED_PATH:
        return "encoded slashes in paths are preserved"
    actual = f" arrives as {report.path.removeprefix(PATH)}" if report else f": {evidence.encoded}"
    message = f"pages of tasks and queues with a slash in their name do not open ({ENCODED_PATH}{actual})"
    return Problem(message, advice.line("encoding"), Status.WARNING)


@check()
def post(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that POST requests reach Flower."""
    if evidence.post.report is not None:
        return "POST requests reach Flower"
    message = f"POST requests fail, so buttons and the tasks table do not work: {evidence.post}"
    return Problem(message, advice.line("post"))


@check(scheme, host, post)
def origin(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that same-origin requests are accepted and cross-site requests rejected."""
    if evidence.same_origin.report is None:
        return Problem(f"same-origin requests are rejected: {evidence.same_origin}", advice.line("origin"))
    if missing := [header for header, response in evidence.cross_site.items() if response.report is not None]:
        message = f"cross-site requests are accepted, because {', '.join(missing)} does not reach Flower"
        return Problem(message, advice.line("origin"))
    return "same-origin requests are accepted, cross-site requests rejected"


@check(post)
def body(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that large request bodies reach Flower."""
    bodies = f"request bodies of {LARGE_BODY // 1000} kB"
    if evidence.large_body.report is not None:
        return f"{bodies} reach Flower"
    return Problem(f"{bodies} do not reach Flower: {evidence.large_body}", advice.line("body"))


# Authentication


@check()
def authentication(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that unauthenticated requests are rejected."""
    header = evidence.report.user_header
    accepted = "unauthenticated requests are accepted"
    if evidence.anonymous.report is not None:
        if not evidence.report.asks:
            return Problem(
                f"{accepted}: Flower was started with --no_auth, and the proxy does not authenticate either",
                "start flower-proxy without --no_auth, or add authentication to the proxy",
            )
        if header:
            return Problem(f"{accepted}: the proxy sets {header} without authentication", advice.set_headers(header))
        return Problem(f"{accepted}: the proxy adds credentials in Authorization", advice.line("authentication"))
    if evidence.spoofed_user is not None and evidence.spoofed_user.report is not None:
        message = f"{accepted} with a spoofed {header}, which the proxy passes on"
        return Problem(message, advice.set_headers(str(header)))
    return _unanswered(evidence.anonymous, evidence.spoofed_user) or "unauthenticated requests are rejected"


@check(authentication)
def metrics(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that /metrics requires authentication."""
    if evidence.metrics.is_ok:
        remedy = f"{advice.line('metrics')}\nor start flower-proxy without --metrics_open, or with --metrics_port"
        return Problem("/metrics is public", remedy)
    return _unanswered(evidence.metrics) or "unauthenticated requests to /metrics are rejected"


# The cluster


@check()
def broker(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that Flower is connected to the broker."""
    if problem := evidence.report.broker:
        return Problem(problem, "compare Flower's broker URL with that of the workers, and see Flower's log")
    if not evidence.report.connected:
        return Problem("the broker answers, but Flower cannot receive events", "see Flower's log for the reason")
    return "the broker answers"


@check(broker)
def workers(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that a worker is online."""
    online = sum(worker.alive for worker in evidence.report.workers)
    if not online:
        return Problem(
            "no worker is online",
            "start one on the same broker (compare 'Broker:' in Flower's log with 'transport:' in the worker's),"
            " and not with both --without-heartbeat and --without-gossip",
        )
    offline = [worker.name for worker in evidence.report.workers if not worker.alive]
    return f"{online} online" + (f", {len(offline)} offline: {', '.join(offline)}" if offline else "")


@check(workers)
def events(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that task events are received from each worker that runs tasks."""
    task_events = {worker.name: worker.task_events for worker in evidence.report.workers if worker.alive}
    if missing := [name for name, received in task_events.items() if received is False]:
        remedy = "start the worker with -E, or set worker_send_task_events = True"
        if not evidence.report.enable_events:
            remedy += "; or start flower-proxy without --enable_events=false"
        return Problem(f"no task events received from {', '.join(missing)}, although tasks run there", remedy)
    if received := sum(map(bool, task_events.values())):
        return f"task events received from {received} of {len(task_events)} workers"
    message = "unknown, because no task has run since Flower was started: run one, and check again"
    return Problem(message, status=Status.SKIPPED)


@check()
def clocks(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that the clocks of Flower, its workers and this machine agree."""
    remedy, skew = "synchronize both clocks by NTP", evidence.report.time - evidence.now
    if abs(skew) > MAX_CLOCK_SKEW:
        return Problem(f"Flower's clock is {_offset(skew)} this machine's", remedy)
    for worker in evidence.report.workers:
        if worker.alive and worker.ahead is not None and abs(worker.ahead) > MAX_CLOCK_SKEW:
            return Problem(f"the clock of {worker.name} is {_offset(worker.ahead)} Flower's", remedy)
    return f"the clocks agree within {MAX_CLOCK_SKEW} seconds"


def _offset(seconds: float) -> str:
    return f"{abs(seconds):.0f} seconds {'ahead of' if seconds > 0 else 'behind'}"


@check()
def versions(evidence: Evidence, advice: Advice) -> Outcome:
    """Check that the versions in use fit together."""
    report = evidence.report
    running = f"flower-proxy {report.flower_proxy}, Flower {report.flower}, Celery {report.celery}"
    others = {worker.celery for worker in report.workers if worker.alive and worker.celery} - {report.celery}
    if others:
        running += f"; workers run Celery {', '.join(sorted(others))}"
    if report.flower_proxy != __version__:
        running += f"; checked with flower-proxy {__version__}"
        return Problem(running, "check with the same version of flower-proxy", Status.WARNING)
    if len({version.partition(".")[0] for version in (report.celery, *others)}) > 1:
        return Problem(running, "run the same major version of Celery everywhere", Status.WARNING)
    return running
