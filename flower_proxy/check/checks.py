"""The checks of a deployment.

Each function is one check: its name is that of the finding, and the decorator names the checks that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flower_proxy import __version__
from flower_proxy.check.client import Answer, Target
from flower_proxy.check.evidence import ENCODED_PATH, LARGE_BODY, SPOOFED_HEADERS, Evidence, StaticFile, resolve
from flower_proxy.check.findings import Check, Checklist, Outcome, Problem, Status
from flower_proxy.check.remedies import Advice
from flower_proxy.check.report import PATH

MAX_CLOCK_SKEW = 16
"""Seconds; Celery warns beyond the same limit."""

CHECKS = Checklist()
check = CHECKS.check


@check()
def launcher(evidence: Evidence, advice: Advice) -> Outcome:
    return f"flower-proxy answers at {evidence.target}"


# Public location


@check()
def trust(evidence: Evidence, advice: Advice) -> Outcome:
    seen = evidence.seen
    if seen.trusted:
        return "no proxy is in between" if evidence.direct else f"the proxy at {seen.peer} is trusted"
    if not seen.headers:
        return f"{seen.peer} is not trusted, and says nothing that could count"
    entries = ",".join((*seen.trusted_proxies, seen.peer))
    return Problem(
        f"{seen.peer} sends {', '.join(seen.headers)}, which does not count, as it is not trusted",
        f"start flower-proxy with --trusted_proxies={entries}",
    )


@check(trust)
def scheme(evidence: Evidence, advice: Advice) -> Outcome:
    asked, seen = evidence.target.scheme, evidence.seen.scheme
    if asked == seen:
        return f"{seen}, as it was asked"
    return Problem(f"Flower takes it for {seen}, but it was asked by {asked}", advice.set_headers("X-Forwarded-Proto"))


@check(trust)
def host(evidence: Evidence, advice: Advice) -> Outcome:
    asked, seen = evidence.target.host, evidence.seen.host
    if asked == seen:
        return f"{seen}, as it was asked"
    return Problem(f"Flower takes its host for {seen}, but {asked} was asked", advice.set_headers("X-Forwarded-Host"))


@check(trust)
def prefix(evidence: Evidence, advice: Advice) -> Outcome:
    asked, seen = evidence.target.prefix, evidence.seen.prefix
    if seen == asked:
        return f"{seen or '/'}, as it was asked"
    if seen is None and not asked:
        return "none"
    option = f"start flower-proxy with --url_prefix={asked}"
    remedy = option if evidence.direct else advice.set_headers("X-Forwarded-Prefix")
    if seen is None:
        message = "nobody tells Flower its prefix: it works, by links that are relative to each page"
        return Problem(message, remedy, Status.WARNING)
    return Problem(f"Flower takes its prefix for {seen or '/'}, but {asked or '/'} was asked", remedy)


@check()
def slash(evidence: Evidence, advice: Advice) -> Outcome:
    answer, target = evidence.without_slash, evidence.target
    if answer is None:
        return "nothing to add to the root"
    leads_to = resolve(f"{target.origin}{target.prefix}", answer.headers.get("location", ""))
    if answer.is_redirect and leads_to == str(target):
        return f"{target.prefix} leads to {target.prefix}/"
    came = f"leads to {leads_to}" if answer.is_redirect else f"is answered with {answer}"
    return Problem(f"{target.prefix}, without the slash at the end, {came}", advice.line("slash"))


@check(trust)
def client(evidence: Evidence, advice: Advice) -> Outcome:
    seen = evidence.seen
    if evidence.direct or seen.client != seen.peer or {"X-Forwarded-For", "Forwarded"} & seen.headers.keys():
        return f"your address is {seen.client}"
    return Problem(f"Flower takes every client for the proxy, {seen.peer}", advice.set_headers("X-Forwarded-For"))


_HEADER_CHECKS: Mapping[str, Check] = {
    "X-Forwarded-For": client,
    "X-Forwarded-Proto": scheme,
    "X-Forwarded-Host": host,
    "X-Forwarded-Prefix": prefix,
}


@check(trust)
def forwarded(evidence: Evidence, advice: Advice) -> Outcome:
    if evidence.direct:
        return "no proxy is in between"
    # One finding per header is enough
    reported = {
        header
        for header, header_check in _HEADER_CHECKS.items()
        if header not in evidence.seen.headers and header_check(evidence, advice).status is not Status.PASSED
    }
    accepted = [name for name in evidence.spoofed if name not in reported and _accepts_spoofed(evidence, name)]
    if accepted:
        return Problem(f"what a client makes up counts: {', '.join(accepted)}", advice.set_headers(*accepted))
    return _unanswered(*evidence.spoofed.values()) or "what a client makes up does not count"


def _accepts_spoofed(evidence: Evidence, name: str) -> bool:
    answer, seen = evidence.spoofed[name], evidence.seen
    told = answer.seen
    if told is None:
        # The spoofed location was refused, or led to a redirect
        return answer.status in range(300, 500)
    if name == "X-Forwarded-For":
        # A proxy may append the client to the header, even if Flower trusts that client as a proxy
        return told.client != seen.client and told.headers.get(name, "").endswith(SPOOFED_HEADERS[name])
    if name == "Forwarded" and told.client != seen.client:
        return True
    return (told.scheme, told.host, told.prefix) != (seen.scheme, seen.host, seen.prefix)


def _unanswered(*answers: Answer | None) -> Problem | None:
    """Return a warning if an answer is missing, since that proves nothing."""
    problems = (answer.problem for answer in answers if answer is not None and not answer.status)
    return next((Problem(f"not known: {problem}", "check again", Status.WARNING) for problem in problems), None)


# Pages and requests


@check(prefix)
def static(evidence: Evidence, advice: Advice) -> Outcome:
    page = evidence.page
    if not page.is_ok or not evidence.statics:
        return Problem(f"the page at {evidence.target} is not Flower's: {page}", advice.line("static"))
    for file in evidence.statics:
        if fault := _fault_of(file, evidence.target):
            remedy = advice.line("large" if file.answer and file.answer.problem else "static")
            return Problem(f"{file.path} {fault}", remedy)
    return f"all {len(evidence.statics)} that the page names come whole, with their types"


def _fault_of(file: StaticFile, target: Target) -> str:
    answer = file.answer
    if answer is None:
        return f"is not below {target}"
    if not answer.is_ok or answer.problem:
        return f"is answered with {answer}"
    kind = answer.headers.get("content-type", "none")
    return "" if file.expected_type in kind else f"comes as {kind}, and browsers refuse it"


def _scripts_and_styles(evidence: Evidence) -> Iterator[tuple[StaticFile, Mapping[str, str]]]:
    return ((file, file.answer.headers) for file in evidence.statics if file.answer and file.expected_type)


@check(static)
def compression(evidence: Evidence, advice: Advice) -> Outcome:
    size = sum(file.size for file, headers in _scripts_and_styles(evidence) if "content-encoding" not in headers)
    if size < LARGE_BODY:
        return "scripts and styles are compressed"
    message = f"{size // 1000} kilobytes of scripts and styles are sent uncompressed"
    return Problem(message, advice.line("compression"), Status.WARNING)


@check(static)
def cache(evidence: Evidence, advice: Advice) -> Outcome:
    for file, headers in _scripts_and_styles(evidence):
        control = headers.get("cache-control", "").lower().replace(" ", "").split(",")
        if {"no-store", "no-cache", "max-age=0"} & set(control) or not any("max-age" in part for part in control):
            message = f"browsers load {file.path} each time: Cache-Control is {','.join(control) or 'missing'}"
            return Problem(message, advice.line("cache"), Status.WARNING)
    return "browsers keep scripts and styles"


@check()
def encoding(evidence: Evidence, advice: Advice) -> Outcome:
    told = evidence.encoded.seen
    if told is not None and told.path == PATH + ENCODED_PATH:
        return "names with a slash arrive as they were sent"
    came = told.path.removeprefix(PATH) if told else evidence.encoded
    message = f"names with a slash, of tasks or queues, cannot be opened: {ENCODED_PATH} comes to {came}"
    return Problem(message, advice.line("encoding"), Status.WARNING)


@check()
def post(evidence: Evidence, advice: Advice) -> Outcome:
    if evidence.post.seen is not None:
        return "buttons and the tasks table can ask"
    return Problem(f"a POST is answered with {evidence.post}, so buttons do not work", advice.line("post"))


@check(scheme, host, post)
def origin(evidence: Evidence, advice: Advice) -> Outcome:
    if evidence.same_origin.seen is None:
        return Problem(
            f"Flower's own page is taken for another site's: a POST of its is answered with {evidence.same_origin}",
            advice.line("origin"),
        )
    if let_in := [header for header, answer in evidence.cross_site.items() if answer.seen is not None]:
        return Problem(
            f"the page of another site could press buttons: {', '.join(let_in)} does not arrive", advice.line("origin")
        )
    return "Flower's own page may act, that of another site may not"


@check(post)
def body(evidence: Evidence, advice: Advice) -> Outcome:
    request = f"a request of {LARGE_BODY // 1000} kilobytes"
    if evidence.large_body.seen is not None:
        return f"{request} comes through"
    return Problem(f"{request} is answered with {evidence.large_body}", advice.line("body"))


# Authentication


@check()
def authentication(evidence: Evidence, advice: Advice) -> Outcome:
    header = evidence.seen.user_header
    if evidence.anonymous.seen is not None:
        if not evidence.seen.asks:
            return Problem(
                "anybody may enter: Flower was started with --no_auth, and the proxy asks nobody either",
                "start flower-proxy without --no_auth, or let the proxy ask",
            )
        if header:
            return Problem(f"anybody may enter: the proxy sends {header} without asking", advice.set_headers(header))
        return Problem("anybody may enter: the proxy sends a password by itself", advice.line("authentication"))
    if evidence.spoofed_user is not None and evidence.spoofed_user.seen is not None:
        message = f"anybody may enter who sends {header}: the proxy passes it on"
        return Problem(message, advice.set_headers(str(header)))
    return _unanswered(evidence.anonymous, evidence.spoofed_user) or "nobody enters without saying who they are"


@check(authentication)
def metrics(evidence: Evidence, advice: Advice) -> Outcome:
    if evidence.metrics.is_ok:
        remedy = f"{advice.line('metrics')}\nor start flower-proxy without --metrics_open, or with --metrics_port"
        return Problem("/metrics is open to everybody", remedy)
    return _unanswered(evidence.metrics) or "closed to those without a password"


# The cluster


@check()
def broker(evidence: Evidence, advice: Advice) -> Outcome:
    if evidence.seen.broker:
        return Problem(
            evidence.seen.broker, "compare the broker's URL with that of the workers, and look into Flower's log"
        )
    if not evidence.seen.connected:
        return Problem("the broker answers, but no events can arrive", "look into Flower's log")
    return "it answers"


@check(broker)
def workers(evidence: Evidence, advice: Advice) -> Outcome:
    online = sum(worker.alive for worker in evidence.seen.workers)
    if not online:
        return Problem(
            "none is heard of",
            "start one, on the same broker (compare the Broker: line of both logs), and not with both"
            " --without-heartbeat and --without-gossip",
        )
    offline = [worker.name for worker in evidence.seen.workers if not worker.alive]
    return f"{online} online" + (f"; silent: {', '.join(offline)}" if offline else "")


@check(workers)
def events(evidence: Evidence, advice: Advice) -> Outcome:
    told = {worker.name: worker.task_events for worker in evidence.seen.workers if worker.alive}
    if silent := [name for name, sends in told.items() if sends is False]:
        remedy = "start the worker with -E, or set worker_send_task_events = True"
        if not evidence.seen.enable_events:
            remedy += "; or start flower-proxy without --enable_events=false"
        return Problem(f"tasks run, but no events of them come from {', '.join(silent)}", remedy)
    if heard := [name for name, sends in told.items() if sends]:
        return f"those of tasks come from {len(heard)} of {len(told)} workers"
    message = "not known, because no task has run since Flower was started: run one, and ask again"
    return Problem(message, status=Status.SKIPPED)


@check()
def clocks(evidence: Evidence, advice: Advice) -> Outcome:
    skew = evidence.seen.time - evidence.now
    if abs(skew) > MAX_CLOCK_SKEW:
        return Problem(f"Flower's clock is {_apart(skew)} that of this machine", "let both keep time by NTP")
    for worker in evidence.seen.workers:
        if worker.alive and worker.ahead is not None and abs(worker.ahead) > MAX_CLOCK_SKEW:
            return Problem(
                f"the clock of {worker.name} is {_apart(worker.ahead)} Flower's",
                "let both keep time by NTP",
            )
    return "they agree"


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.0f} seconds {'ahead of' if seconds > 0 else 'behind'}"


@check()
def versions(evidence: Evidence, advice: Advice) -> Outcome:
    seen = evidence.seen
    running = f"flower-proxy {seen.flower_proxy}, Flower {seen.flower}, Celery {seen.celery}"
    others = {worker.celery for worker in seen.workers if worker.alive and worker.celery} - {seen.celery}
    if others:
        running += f"; workers' Celery {', '.join(sorted(others))}"
    if seen.flower_proxy != __version__:
        message = f"{running}, checked by {__version__}"
        return Problem(message, "check with the same version of flower-proxy", Status.WARNING)
    if len({version.partition(".")[0] for version in (seen.celery, *others)}) > 1:
        return Problem(running, "run one major version of Celery everywhere", Status.WARNING)
    return running
