"""From what came back to what is wrong, and what to do about it: plain functions."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from flower_proxy import __version__
from flower_proxy.check.evidence import (
    ENCODED_PATH,
    LARGE_BODY,
    SPOOFED_HEADERS,
    Answer,
    Evidence,
    StaticFile,
    Target,
    path_of,
    resolve,
)
from flower_proxy.check.remedies import line, recognise, set_headers
from flower_proxy.check.report import PATH

MOST_SECONDS_APART = 16
"""Of two clocks; beyond it Celery complains too."""

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class Status(enum.Enum):
    """What became of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    :ivar name: of the check.
    :ivar message: what was seen, in one line.
    :ivar remedy: what to add or to do, a line each; empty where nothing is to be done.
    """

    name: str
    status: Status
    message: str
    remedy: str = ""


Told = tuple[Status, str, str]


@dataclass(frozen=True)
class Advice:
    """Writes remedies for a proxy.

    :ivar proxy: one of `flower_proxy.check.remedies.PROXIES`, or empty.
    """

    proxy: str
    prefix: str

    def line(self, key: str) -> str:
        return line(key, self.proxy, self.prefix)

    def set(self, *names: str) -> str:
        return set_headers(names, self.proxy, self.prefix)


def examine(evidence: Evidence, proxy: str = "") -> list[Finding]:
    """Judge what came back.

    :param proxy: which one it is, where that is known; otherwise it is what the answers say.
    :returns: a finding for each check. One whose ground another one has taken away is skipped and says so.
    """
    advice = Advice(proxy or recognise(evidence.answer.headers.get("server", "")), evidence.target.prefix)
    findings = [Finding("launcher", *_ok(f"flower-proxy answers at {evidence.target}"))]
    without: set[str] = set()
    for name, needs, check in _CHECKS:
        if lacks := [need for need in needs if need in without]:
            findings.append(Finding(name, Status.SKIPPED, f"not looked at, because of {lacks[0]}"))
            without.add(name)
            continue
        finding = Finding(name, *check(evidence, advice))
        findings.append(finding)
        if finding.status is Status.FAILED:
            without.add(name)
    return findings


def _ok(message: str) -> Told:
    return Status.PASSED, message, ""


def _fail(message: str, remedy: str) -> Told:
    return Status.FAILED, message, remedy


def _warn(message: str, remedy: str) -> Told:
    return Status.WARNING, message, remedy


def _unanswered(*answers: Answer | None) -> Told | None:
    """Return a warning if one of these did not come, since nothing follows from that."""
    problems = [answer.problem for answer in answers if answer is not None and not answer.status]
    return _warn(f"not known: {problems[0]}", "check again") if problems else None


# Where are we


def _trust(evidence: Evidence, advice: Advice) -> Told:
    seen = evidence.seen
    if seen.trusted:
        return _ok("no proxy is in between" if evidence.direct else f"the proxy at {seen.peer} is trusted")
    if not seen.headers:
        return _ok(f"{seen.peer} is not trusted, and says nothing that could count")
    entries = ",".join((*seen.trusted_proxies, seen.peer))
    return _fail(
        f"{seen.peer} sends {', '.join(seen.headers)}, which does not count, as it is not trusted",
        f"start flower-proxy with --trusted_proxies={entries}",
    )


def _scheme(evidence: Evidence, advice: Advice) -> Told:
    asked, seen = evidence.target.scheme, evidence.seen.scheme
    if asked == seen:
        return _ok(f"{seen}, as it was asked")
    return _fail(f"Flower takes it for {seen}, but it was asked by {asked}", advice.set("X-Forwarded-Proto"))


def _host(evidence: Evidence, advice: Advice) -> Told:
    asked, seen = evidence.target.host, evidence.seen.host
    if asked == seen:
        return _ok(f"{seen}, as it was asked")
    return _fail(f"Flower takes its host for {seen}, but {asked} was asked", advice.set("X-Forwarded-Host"))


def _prefix(evidence: Evidence, advice: Advice) -> Told:
    asked, seen = evidence.target.prefix, evidence.seen.prefix
    remedy = f"start flower-proxy with --url_prefix={asked}" if evidence.direct else advice.set("X-Forwarded-Prefix")
    if seen == asked:
        return _ok(f"{seen or '/'}, as it was asked")
    if seen is None:
        if not asked:
            return _ok("none")
        return _warn("nobody tells Flower its prefix: it works, by links that are relative to each page", remedy)
    return _fail(f"Flower takes its prefix for {seen or '/'}, but {asked or '/'} was asked", remedy)


def _slash(evidence: Evidence, advice: Advice) -> Told:
    answer, target = evidence.without_slash, evidence.target
    if answer is None:
        return _ok("nothing to add to the root")
    leads_to = resolve(f"{target.origin}{target.prefix}", answer.headers.get("location", ""))
    if answer.status in range(300, 400) and leads_to == str(target):
        return _ok(f"{target.prefix} leads to {target.prefix}/")
    came = f"leads to {leads_to}" if answer.status in range(300, 400) else f"is answered with {answer}"
    return _fail(f"{target.prefix}, without the slash at the end, {came}", advice.line("slash"))


def _client(evidence: Evidence, advice: Advice) -> Told:
    seen = evidence.seen
    if evidence.direct or seen.client != seen.peer or "X-Forwarded-For" in seen.headers or "Forwarded" in seen.headers:
        return _ok(f"your address is {seen.client}")
    return _fail(f"Flower takes every client for the proxy, {seen.peer}", advice.set("X-Forwarded-For"))


def _forwarded(evidence: Evidence, advice: Advice) -> Told:
    if evidence.direct:
        return _ok("no proxy is in between")
    # Where a check has named the header already, one line is enough
    named = {
        header
        for header, check in _SETS.items()
        if header not in evidence.seen.headers and check(evidence, advice)[0] is not Status.PASSED
    }
    believed = [name for name, answer in evidence.spoofed.items() if name not in named and _is_believed(evidence, name)]
    if not believed:
        if unknown := _unanswered(*evidence.spoofed.values()):
            return unknown
        return _ok("what a client makes up does not count")
    return _fail(f"what a client makes up counts: {', '.join(believed)}", advice.set(*believed))


_SETS: Mapping[str, Callable[[Evidence, Advice], Told]] = {
    "X-Forwarded-For": _client,
    "X-Forwarded-Proto": _scheme,
    "X-Forwarded-Host": _host,
    "X-Forwarded-Prefix": _prefix,
}


def _is_believed(evidence: Evidence, name: str) -> bool:
    answer, seen = evidence.spoofed[name], evidence.seen
    told = answer.seen
    if told is None:
        # Refused, or sent to where nothing is
        return answer.status in range(300, 500)
    if name == "X-Forwarded-For":
        # One that appends is fine, also where it finds us to be somebody whom Flower trusts
        return told.client != seen.client and told.headers.get(name, "").endswith(SPOOFED_HEADERS[name])
    if name == "Forwarded" and told.client != seen.client:
        return True
    return (told.scheme, told.host, told.prefix) != (seen.scheme, seen.host, seen.prefix)


# What comes through


def _static(evidence: Evidence, advice: Advice) -> Told:
    page = evidence.page
    if page.status != HTTPStatus.OK or not evidence.statics:
        return _fail(f"the page at {evidence.target} is not Flower's: {page}", advice.line("static"))
    for file in evidence.statics:
        if fault := _fault_of(file, evidence.target):
            remedy = advice.line("large" if file.answer and file.answer.problem else "static")
            return _fail(f"{file.path} {fault}", remedy)
    return _ok(f"all {len(evidence.statics)} that the page names come whole, with their types")


def _fault_of(file: StaticFile, target: Target) -> str:
    answer = file.answer
    if answer is None:
        return f"is not below {target}"
    if answer.status != HTTPStatus.OK or answer.problem:
        return f"is answered with {answer}"
    kind = answer.headers.get("content-type", "none")
    return "" if file.expected_type in kind else f"comes as {kind}, and browsers refuse it"


def _of_code(evidence: Evidence) -> list[tuple[StaticFile, Answer]]:
    return [(file, file.answer) for file in evidence.statics if file.answer and file.expected_type]


def _compression(evidence: Evidence, advice: Advice) -> Told:
    size = sum(file.size for file, answer in _of_code(evidence) if "content-encoding" not in answer.headers)
    if size < LARGE_BODY:
        return _ok("scripts and styles are compressed")
    return _warn(f"{size // 1000} kilobytes of scripts and styles are sent uncompressed", advice.line("compression"))


def _cache(evidence: Evidence, advice: Advice) -> Told:
    for file, answer in _of_code(evidence):
        control = answer.headers.get("cache-control", "").lower().replace(" ", "").split(",")
        if {"no-store", "no-cache", "max-age=0"} & set(control) or not any("max-age" in part for part in control):
            said = ",".join(control) or "missing"
            return _warn(f"browsers load {file.path} each time: Cache-Control is {said}", advice.line("cache"))
    return _ok("browsers keep scripts and styles")


def _encoding(evidence: Evidence, advice: Advice) -> Told:
    told = evidence.encoded.seen
    if told is not None and told.path == PATH + ENCODED_PATH:
        return _ok("names with a slash arrive as they were sent")
    came = told.path.removeprefix(PATH) if told else evidence.encoded
    return _warn(
        f"names with a slash, of tasks or queues, cannot be opened: {ENCODED_PATH} comes to {came}",
        advice.line("encoding"),
    )


def _post(evidence: Evidence, advice: Advice) -> Told:
    if evidence.post.seen is not None:
        return _ok("buttons and the tasks table can ask")
    return _fail(f"a POST is answered with {evidence.post}, so buttons do not work", advice.line("post"))


def _origin(evidence: Evidence, advice: Advice) -> Told:
    if evidence.same_origin.seen is None:
        return _fail(
            f"Flower's own page is taken for another site's: a POST of its is answered with {evidence.same_origin}",
            advice.line("origin"),
        )
    let_in = [header for header, answer in evidence.cross_site.items() if answer.seen is not None]
    if let_in:
        return _fail(
            f"the page of another site could press buttons: {', '.join(let_in)} does not arrive", advice.line("origin")
        )
    return _ok("Flower's own page may act, that of another site may not")


def _body(evidence: Evidence, advice: Advice) -> Told:
    if evidence.large_body.seen is not None:
        return _ok(f"a request of {LARGE_BODY // 1000} kilobytes comes through")
    return _fail(
        f"a request of {LARGE_BODY // 1000} kilobytes is answered with {evidence.large_body}", advice.line("body")
    )


# Who may enter


def _authentication(evidence: Evidence, advice: Advice) -> Told:
    if evidence.anonymous.seen is not None:
        if not evidence.seen.asks:
            return _fail(
                "anybody may enter: Flower was started with --no_auth, and the proxy asks nobody either",
                "start flower-proxy without --no_auth, or let the proxy ask",
            )
        if header := evidence.seen.user_header:
            return _fail(f"anybody may enter: the proxy sends {header} without asking", advice.set(header))
        return _fail("anybody may enter: the proxy sends a password by itself", advice.line("authentication"))
    if evidence.spoofed_user is not None and evidence.spoofed_user.seen is not None:
        header = str(evidence.seen.user_header)
        return _fail(f"anybody may enter who sends {header}: the proxy passes it on", advice.set(header))
    if unknown := _unanswered(evidence.anonymous, evidence.spoofed_user):
        return unknown
    return _ok("nobody enters without saying who they are")


def _metrics(evidence: Evidence, advice: Advice) -> Told:
    if unknown := _unanswered(evidence.metrics):
        return unknown
    if evidence.metrics.status != HTTPStatus.OK:
        return _ok("closed to those without a password")
    remedy = f"{advice.line('metrics')}\nor start flower-proxy without --metrics_open, or with --metrics_port"
    return _fail("/metrics is open to everybody", remedy)


# The cluster


def _broker(evidence: Evidence, advice: Advice) -> Told:
    if evidence.seen.broker:
        return _fail(
            evidence.seen.broker, "compare the broker's URL with that of the workers, and look into Flower's log"
        )
    if not evidence.seen.connected:
        return _fail("the broker answers, but no events can arrive", "look into Flower's log")
    return _ok("it answers")


def _workers(evidence: Evidence, advice: Advice) -> Told:
    alive = [worker for worker in evidence.seen.workers if worker.alive]
    if alive:
        silent = [worker.name for worker in evidence.seen.workers if not worker.alive]
        gone = f"; silent: {', '.join(silent)}" if silent else ""
        return _ok(f"{len(alive)} online{gone}")
    return _fail(
        "none is heard of",
        "start one, on the same broker (compare the Broker: line of both logs), and not with both --without-heartbeat"
        " and --without-gossip",
    )


def _events(evidence: Evidence, advice: Advice) -> Told:
    told = {worker.name: worker.task_events for worker in evidence.seen.workers if worker.alive}
    if silent := [name for name, sends in told.items() if sends is False]:
        remedy = "start the worker with -E, or set worker_send_task_events = True"
        if not evidence.seen.enable_events:
            remedy += "; or start flower-proxy without --enable_events=false"
        return _fail(f"tasks run, but no events of them come from {', '.join(silent)}", remedy)
    if heard := [name for name, sends in told.items() if sends]:
        return _ok(f"those of tasks come from {len(heard)} of {len(told)} workers")
    return Status.SKIPPED, "not known, because no task has run since Flower was started: run one, and ask again", ""


def _clocks(evidence: Evidence, advice: Advice) -> Told:
    ours = evidence.seen.time - evidence.now
    if abs(ours) > MOST_SECONDS_APART:
        return _fail(f"Flower's clock is {_apart(ours)} that of this machine", "let both keep time by NTP")
    for worker in evidence.seen.workers:
        if worker.alive and worker.ahead is not None and abs(worker.ahead) > MOST_SECONDS_APART:
            return _fail(
                f"the clock of {worker.name} is {_apart(worker.ahead)} Flower's",
                "let both keep time by NTP, in the same time zone (TZ): Celery's events carry no other",
            )
    return _ok("they agree")


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.0f} seconds {'ahead of' if seconds > 0 else 'behind'}"


def _versions(evidence: Evidence, advice: Advice) -> Told:
    seen = evidence.seen
    running = f"flower-proxy {seen.flower_proxy}, Flower {seen.flower}, Celery {seen.celery}"
    others = {worker.celery for worker in seen.workers if worker.alive and worker.celery} - {seen.celery}
    if others:
        running += f"; workers' Celery {', '.join(sorted(others))}"
    if seen.flower_proxy != __version__:
        return _warn(f"{running}, checked by {__version__}", "check with the same version of flower-proxy")
    if any(_major(other) != _major(seen.celery) for other in others):
        return _warn(running, "run one major version of Celery everywhere")
    return _ok(running)


def _major(version: str) -> str:
    return version.partition(".")[0]


_CHECKS: tuple[tuple[str, Collection[str], Callable[[Evidence, Advice], Told]], ...] = (
    ("trust", (), _trust),
    ("scheme", ("trust",), _scheme),
    ("host", ("trust",), _host),
    ("prefix", ("trust",), _prefix),
    ("slash", (), _slash),
    ("client", ("trust",), _client),
    ("forwarded", ("trust",), _forwarded),
    ("static", ("prefix",), _static),
    ("compression", ("static",), _compression),
    ("cache", ("static",), _cache),
    ("encoding", (), _encoding),
    ("post", (), _post),
    ("origin", ("scheme", "host", "post"), _origin),
    ("body", ("post",), _body),
    ("authentication", (), _authentication),
    ("metrics", ("authentication",), _metrics),
    ("broker", (), _broker),
    ("workers", ("broker",), _workers),
    ("events", ("workers",), _events),
    ("clocks", (), _clocks),
    ("versions", (), _versions),
)


# Where somebody else answers


def not_reached(answer: Answer, health: Answer, target: Target, user: str | None) -> Finding:
    """Say why what answers is not the launcher.

    :param answer: to the question what it sees.
    :param health: to the question whether Flower lives.
    :param user: who asked.
    """
    failed = partial(Finding, "launcher", Status.FAILED)
    if answer.problem:
        return failed(answer.problem)
    server = answer.headers.get("server", "").partition("/")[0]
    who = server or "something"
    is_flower = health.status == HTTPStatus.OK and health.text.strip() == "OK"
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return failed(*_unauthorized(answer.headers.get("www-authenticate", ""), user))
    if answer.status in _REFUSED or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        said = _first_line(answer)
        return failed(f"{answer}{': ' + said if said else ''}", "" if said else f"{who} refuses: look into its log")
    if answer.status in range(300, 400):
        leads_to = resolve(str(target), answer.headers.get("location", ""))
        if path_of(leads_to).endswith(PATH):
            return failed(f"{target} leads to {leads_to.removesuffix(PATH)}/", "check that address")
        # Its query holds states and clients that are nobody's business
        return failed(
            f"a page to log in at, {leads_to.partition('?')[0]}, is in front of Flower",
            "check an address at which Flower itself asks for a password, such as the one that the proxy passes on to",
        )
    if answer.status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
        return failed(
            f"{who} answers {answer}: it does not reach flower-proxy",
            "start flower-proxy, and compare the address that it prints with the one that the proxy passes on to",
        )
    if answer.status == HTTPStatus.BAD_REQUEST:
        return failed(f"{answer}: {_first_line(answer) or 'is it https:// there?'}")
    if is_flower:
        return failed(
            f"Flower answers at {target}, but not flower-proxy", "start flower-proxy in place of celery flower"
        )
    if 'name="flower-page"' in answer.text:
        return failed(
            f"Flower answers, but finds no page at {target}",
            f"start flower-proxy with --url_prefix={target.prefix}",
        )
    return failed(
        f"{who} answers {answer}, which is not Flower",
        f"look for a mistake in the address; otherwise let the proxy pass {target.prefix}/ on to flower-proxy",
    )


def timed_out(message: str) -> Finding:
    """Report that the check ran out of time."""
    remedy = "look into the logs of the proxy and of flower-proxy for what takes so long, and check again"
    return Finding("launcher", Status.FAILED, message, remedy)


def _unauthorized(challenge: str, user: str | None) -> tuple[str, str]:
    if 'realm="flower"' not in challenge:
        name = challenge.partition(" ")[0] or "somebody"
        return (
            f"the proxy asks for a password of its own ({name}), and does not take this one",
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
