"""State of the cluster: its workers and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from flower_proxy._bounded import BoundedDict
from flower_proxy._flower import EventsState, NoMetrics, forget_counts
from flower_proxy.events.saved_state import Part, SavedTask
from flower_proxy.events.search import SearchResults
from flower_proxy.events.task import Task, shared
from flower_proxy.events.worker import Worker as _Worker
from flower_proxy.events.worker_cache import WorkerCache

_MAX_TASK_NAMES = 1000
_MAX_EVENT_TYPES = 100


@lru_cache(maxsize=_MAX_EVENT_TYPES)
def _parts_of(kind: str) -> tuple[str, str]:
    """Return the group of an event type, and the rest."""
    group, _, subject = kind.partition("-")
    return group, subject


class State(EventsState):
    """Flower's state of the cluster, without its metrics. Not thread-safe: used in the event loop only.

    It merges the events of a task as Celery's state does, but keeps no index: neither a heap of events, nor the tasks
    of each name and worker, which no page reads, nor the words of each task.
    """

    Worker = _Worker
    _seen_types: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = NoMetrics()
        self.search_engine = SearchResults()
        self.workers = WorkerCache(self.max_workers_in_memory)
        # By id of a task without events: the tasks that it has started
        self._orphans: BoundedDict[str, dict[str, None]] = BoundedDict(self.max_tasks_in_memory)

    def restore(self, part: Part) -> list[Task]:
        """Add a part of a saved state.

        :returns: the tasks of the part.
        """
        for worker in part.workers:
            name = worker.hostname
            self.workers[name] = _Worker.restored(worker)
            self.counter[name].update(worker.counts)
        workers = {
            name: self.workers.data.get(name) or _Worker.restored(worker)
            for name, worker in part.workers_of_tasks.items()
        }
        return [self._restore(task, workers) for task in part.tasks]

    def _restore(self, saved: SavedTask, workers: Mapping[str, _Worker]) -> Task:
        task = Task(tasks=self.tasks.data, **saved.fields)
        self._add(task)
        if saved.worker is not None:
            task.worker = workers[saved.worker]
        if task.parent_id:
            self._link_to_parent(task)
        return task

    def event(self, event: Mapping[str, Any]) -> None:
        """Process an event and mark its worker as the most recent one."""
        kind, name, counts = event["type"], event["hostname"], self.counter
        group, subject = _parts_of(kind)
        self.event_count += 1
        if group == "task":
            self._on_task(subject, event)
        elif group == "worker" and (subject != "offline" or name in self.workers.data):
            self._worker(name).event(subject, event["timestamp"], event["local_received"], event)
        if not self.workers.touch(name):
            # Clients have one name per process, and Flower does not display their counts
            counts.pop(name, None)
            return
        types = counts[name]
        types[kind] += 1
        if len(types) > _MAX_EVENT_TYPES and types[kind] == 1:
            types["other"] += types.pop(kind)
        elif len(counts) > 2 * self.max_workers_in_memory:
            self.forget_evicted()

    def end(self, event: Mapping[str, Any]) -> None:
        """Apply the end of a known task that no event has reported; the counts of events and its worker stay.

        :param event: a valid event of the end, from another source than its worker.
        """
        task: Task = self.tasks.data[event["uuid"]]
        task.on_event(event["type"].removeprefix("task-"), event)

    def _on_task(self, subject: str, event: Mapping[str, Any]) -> None:
        uuid, name = event["uuid"], event["hostname"]
        task: Task | None = self.tasks.data.get(uuid)
        if task is None:
            task = self._add(Task(uuid, self.tasks.data))
        if subject == "sent":
            task.client = shared(name)
        else:
            worker = task.worker = self._worker(name)
            worker.on_task_event(event["local_received"])
            if subject == "received":
                self.task_count += 1
        task.on_event(subject, event)
        if task.name is not None:
            self._seen_types.add(task.name)
        if task.parent_id:
            self._link_to_parent(task)

    def _worker(self, name: str) -> _Worker:
        worker: _Worker | None = self.workers.data.get(name)
        if worker is None:
            worker = self.workers[name] = _Worker(shared(name))
        return worker

    def _add(self, task: Task) -> Task:
        self.tasks[task.uuid] = task
        task.child_ids = self._orphans.pop(task.uuid, None)
        return task

    def _link_to_parent(self, task: Task) -> None:
        tasks, parent_id = self.tasks.data, task.parent_id or ""
        parent = tasks.get(parent_id)
        if parent is None:
            children = self._orphans.get(parent_id) or {}
            self._orphans.put(parent_id, children)
        else:
            # Celery's state does not evict a parent before its recent children
            tasks.move_to_end(parent_id)
            if parent.child_ids is None:
                parent.child_ids = {}
            children = parent.child_ids
        children[task.uuid] = None
        if len(children) > 2 * self.max_tasks_in_memory:
            for uuid in children.keys() - tasks.keys():
                del children[uuid]

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, Task]]:
        """Yield the tasks by id, least recent first."""
        yield from list(self.tasks.data.items())[:limit]

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        """Yield the tasks by id, in the order of their timestamps."""
        tasks = sorted(self.tasks.data.items(), key=lambda item: item[1].timestamp or 0, reverse=reverse)
        yield from tasks[:limit]

    tasks_by_timestamp = tasks_by_time

    def forget_evicted(self) -> None:
        """Drop the counts and names of evicted workers and tasks.

        Up to 1000 task names are kept for Flower's list of task names.
        """
        forget_counts(self, lambda name: name not in self.workers)
        if len(self._seen_types) > _MAX_TASK_NAMES:
            self._seen_types = {task.name for task in self.tasks.values() if task.name is not None}
