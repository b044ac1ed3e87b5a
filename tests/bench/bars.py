"""Table of bars: flower-proxy compared with stock Flower, ``python -m tests.bench``.

Both are measured alternately, and the order alternates, too. Figures are medians of the turns; ratios are medians of
the ratios of each turn. CPU times include all threads of the server. The exit status is 1 if a bar is not met or a case
has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from redis import Redis

from tests.bench import cost, layers, metrics, weight, workers
from tests.bench.figures import BAR_HEADINGS, OURS, STOCK, Row, line
from tests.bench.floods import FAST, Result, has_extra, launched
from tests.bench.floods import measure as measure_flood
from tests.bench.generator import Flood
from tests.support.programs import Broker, redis, worker
from tests.support.rabbitmq import rabbitmq

# Those that last long, and whose results differ little
FEW_TURNS = 3
MAX_MEMORY_TASKS = 100_000

Measure = Callable[[int, float], Iterator[Row]]
RunBroker = Callable[[Path], contextlib.AbstractContextManager[Broker]]


def turns_of(
    broker_of: RunBroker,
    flood: Flood,
    kinds: Sequence[str],
    turns: int,
    *,
    options: Sequence[str] = (),
    pages: bool = False,
    slower: float = 0,
) -> dict[str, list[Result]]:
    """Measure the kinds alternately, all with one broker."""
    results: dict[str, list[Result]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name, broker_of(Path(name)) as broker:
        for turn in range(turns):
            for kind in kinds[:: -1 if turn % 2 else 1]:
                result = measure_flood(kind, broker, Path(name), flood, options=options, pages=pages, slower=slower)
                results[kind].append(result)
    return results


def rate_of(results: dict[str, list[Result]]) -> str:
    """Return a note with the rate that the generator has reached."""
    return f"{median(one.rate for found in results.values() for one in found):,.0f} events/s sent"


def cpu(
    name: str,
    broker_of: RunBroker,
    flood: Flood,
    bar: float,
    fast: float | None = None,
) -> Measure:
    """Return a measurement of the CPU time per event.

    :param fast: the bar with the extra ``fast``; None to measure without it only.
    """

    def run(turns: int, scale: float) -> Iterator[Row]:
        kinds = [STOCK, OURS, *([FAST] if fast and has_extra else [])]
        results = turns_of(broker_of, flood.scaled(scale), kinds, turns)
        stock = [result.cpu for result in results[STOCK]]
        bars = {OURS: bar, FAST: fast}
        for kind in kinds[1:]:
            label = f"CPU us/event, {name}{', [fast]' if kind == FAST else ''}"
            lost = sum(result.lost for result in results[kind])
            note = rate_of(results) + (f"; lost {lost}" if lost else "")
            yield Row(label, [result.cpu for result in results[kind]], stock, bars[kind], note=note)
        if fast and not has_extra:
            yield Row(f"CPU us/event, {name}, [fast]", note="the extra is not installed")

    return run


def lost(
    name: str,
    broker_of: RunBroker,
    flood: Flood,
    *,
    slower: float = 0,
) -> Measure:
    """Return a measurement of lost events."""

    def run(turns: int, scale: float) -> Iterator[Row]:
        kinds = [OURS] if slower else [STOCK, OURS]
        results = turns_of(broker_of, flood.scaled(scale), kinds, min(turns, FEW_TURNS), slower=slower)
        stock = [float(result.lost) for result in results.get(STOCK, ())]
        ours = [float(result.lost) for result in results[OURS]]
        note = f"{rate_of(results)}; {sum(result.dropped for result in results[OURS])} reported as dropped"
        yield Row(f"lost, {name}", ours, stock, 0, is_ratio=False, summary=max, note=note)

    return run


def pages(rate: float, bar: float) -> Measure:
    """Return a measurement of the durations of pages."""

    def run(turns: int, scale: float) -> Iterator[Row]:
        flood = Flood(rate, 120_000).scaled(scale)
        results = turns_of(redis, flood, [STOCK, OURS], turns, pages=True)
        ours, stock = ([result.p99 for result in results[kind]] for kind in (OURS, STOCK))
        number = sum(len(result.pages) for result in results[OURS])
        note = f"{number} pages; {rate_of(results)}"
        yield Row(f"page p99 ms, Redis {rate:,.0f}/s", ours, stock, bar, is_ratio=False, note=note)

    return run


@contextlib.contextmanager
def patient_redis(folder: Path) -> Iterator[Broker]:
    """Run a Redis that does not disconnect a slow subscriber, which would lose events and use less memory."""
    with redis(folder) as broker, contextlib.closing(Redis.from_url(broker.url)) as client:
        client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        yield broker


def memory(turns: int, scale: float) -> Iterator[Row]:
    """Yield the memory with tasks whose results have 400 bytes."""
    tasks = max(1, int(MAX_MEMORY_TASKS * scale))
    flood = Flood(4000, 3 * tasks, result=400)
    results = turns_of(patient_redis, flood, [STOCK, OURS], min(turns, FEW_TURNS), options=[f"--max_tasks={tasks}"])
    ours, stock = ([result.memory for result in results[kind]] for kind in (OURS, STOCK))
    few = ", ".join(f"{kind} lost {sum(one.lost for one in found)}" for kind, found in results.items())
    yield Row(f"memory MB, {tasks:,} tasks of 400 B", ours, stock, 0.40, note=few)


def page_weight(turns: int, scale: float) -> Iterator[Row]:
    """Yield the weight of a page, which does not vary."""
    found = {}
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as broker:
        for kind in (STOCK, OURS):
            with launched(kind, broker, Path(name)) as server:
                found[kind] = weight.measure(server, Path(name) / f"browser-{kind}")
    for view, bar in enumerate((180, 8)):
        label = f"{('first', 'second')[view]} page, KB"
        yield Row(label, [found[OURS][view]], [found[STOCK][view]], bar, is_ratio=False)


def start(turns: int, scale: float) -> Iterator[Row]:
    """Yield the time from the start to the first response."""
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as broker, worker(broker, Path(name)):
        cost.write_byte_code(broker, Path(name))
        for figure in cost.measure_starts(broker, Path(name), turns=turns)[:2]:
            bar = 1.1 if "CPU" not in figure.name else None
            yield Row(figure.name, figure.values[OURS], figure.values[STOCK], bar)


def scrape(turns: int, scale: float) -> Iterator[Row]:
    """Yield the CPU time of a scrape."""
    scrapes = metrics.scrape_by_turns(turns)
    label = f"scrape CPU ms, {metrics.WORKERS} workers x {metrics.TASKS} tasks"
    yield Row(label, scrapes[OURS].cpu, scrapes[STOCK].cpu, 0.06)


def real_workers(name: str, broker_of: RunBroker) -> Measure:
    """Return a measurement of the events of real workers."""

    def run(turns: int, scale: float) -> Iterator[Row]:
        tasks = max(10, int(20_000 * scale))
        with tempfile.TemporaryDirectory() as folder, broker_of(Path(folder)) as broker:
            missing = workers.measure(broker, Path(folder), OURS, tasks)
        yield Row(f"events missing, {name}, 4 prefork workers, {tasks:,} tasks", [missing], (), 0, is_ratio=False)

    return run


CASES: dict[str, Measure] = {
    "bursts": cpu("Redis 10,000/s in bursts", redis, Flood(10_000, 90_000), 0.25, 0.22),
    "even": cpu("Redis 1,000/s, evenly spaced", redis, Flood(1000, 20_000, burst=1), 0.35),
    "rabbitmq": cpu("RabbitMQ 4,000/s", rabbitmq, Flood(4000, 60_000), 0.45),
    "lost": lost("Redis 14,000/s x 270,000", redis, Flood(14_000, 270_000)),
    "lost-lists": lost("Redis 150,000/s x 600,000 in lists of 24", redis, Flood(150_000, 600_000, burst=480, batch=24)),
    "lost-rabbitmq": lost("RabbitMQ 10,000/s x 150,000", rabbitmq, Flood(10_000, 150_000)),
    "lost-slow": lost("Redis 8,000/s, 100 us slower", redis, Flood(8000, 120_000), slower=100),
    "pages-8000": pages(8000, 40),
    "pages-10000": pages(10_000, 80),
    "memory": memory,
    "weight": page_weight,
    "start": start,
    "scrape": scrape,
    "workers-redis": real_workers("Redis", redis),
    "workers-rabbitmq": real_workers("RabbitMQ", rabbitmq),
    "layers": layers.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--turns", type=int, default=7, help="number of measurements of each kind")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of events")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - CASES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    print(line(*BAR_HEADINGS), flush=True)
    is_met = True
    for name in arguments.cases or CASES:
        try:
            for row in CASES[name](arguments.turns, arguments.scale):
                print(row, flush=True)
                is_met = is_met and row.is_met
        except Exception as error:
            # A failed case must not take the other ones with it
            is_met = False
            print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc()
    return 0 if is_met else 1
