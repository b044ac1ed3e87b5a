"""State of the cluster: its workers and tasks."""

from __future__ import annotations

from typing import Any

from celery.events.state import Task
from kombu.utils.functional import LRUCache

from flower_proxy._flower import EventsState, NoMetrics, TaskSearch, forget_counts, forget_task_names, task_of
from flower_proxy.events.saved_state import SavedState
from flower_proxy.events.worker import Worker
from flower_proxy.events.worker_cache import WorkerCache

_MAX_TASK_NAMES = 1000
_MAX_EVENT_TYPES = 100
# Undocumented fields of events accumulate in the task
_MAX_TASK_FIELDS = 100
_TASK_FIELDS = {*Task._fields, *vars(Task()), "queue"}


class State(EventsState):
    """Flower's state of the cluster, without its metrics. Not thread-safe: used in the event loop only."""

    Worker = Worker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = NoMetrics()
        self.search_engine = TaskSearch()
        self.workers = WorkerCache(self.max_workers_in_memory)
        # Older releases of Celery never drop parents without events
        self._tasks_to_resolve = LRUCache(self.max_tasks_in_memory)

    def restore(self, saved: SavedState) -> None:
        """Add the valid workers and tasks of a saved state.

        :param saved: lists the skipped ones in its `invalid` afterwards.
        """
        for name, worker in saved.workers():
            self.workers[name] = Worker.restored(worker)
            self.counter[name].update(saved.counts(name))
        workers = dict(self.workers)
        for uuid, task in saved.tasks():
            restored = self.tasks[uuid] = self.Task(cluster_state=self, **task.fields)
            if task.worker is not None:
                name = task.worker.fields["hostname"]
                restored.worker = workers.get(name) or workers.setdefault(name, Worker.restored(task.worker))
        self.search_engine.rebuild(self.tasks.items())
        self.rebuild_taskheap()

    def event(self, event: dict[str, Any]) -> None:
        """Process an event and mark its worker as the most recent one."""
        super().event(event)
        name, kind, counts = event["hostname"], event["type"], self.counter
        if kind.startswith("task-") and len(fields := vars(task_of(self, event["uuid"]))) > _MAX_TASK_FIELDS:
            for field in fields.keys() - _TASK_FIELDS - event.keys():
                del fields[field]
        if not self.workers.touch(name):
            # Clients have one name per process, and Flower does not display their counts
            counts.pop(name, None)
        elif len(types := counts[name]) > _MAX_EVENT_TYPES and types[kind] == 1:
            types["other"] += types.pop(kind)
        elif len(counts) > 2 * self.max_workers_in_memory:
            self.forget_evicted()

    def forget_evicted(self) -> None:
        """Drop the counts and names of evicted workers and tasks.

        Up to 1000 task names are kept for Flower's list of task names.
        """
        forget_counts(self, lambda name: name not in self.workers)
        forget_task_names(self, _MAX_TASK_NAMES)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as Flower's own class, so that stock Flower can load it
        _, *rest = super().__reduce__()
        return EventsState, *rest
