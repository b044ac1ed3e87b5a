"""The state of the cluster: its workers and tasks."""

from __future__ import annotations

from typing import Any

from flower_proxy._flower import EventsState, NoMetrics, TaskSearch
from flower_proxy.events.worker import Worker


class State(EventsState):
    """Flower's state of the cluster, without its metrics. Used in the event loop only."""

    Worker = Worker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = NoMetrics()
        self.search_engine = TaskSearch()

    @classmethod
    def restored(cls, saved: EventsState, **limits: int) -> State:
        """Return the state that holds what was saved.

        :param saved: as it was loaded.
        :param limits: ``max_workers_in_memory`` and ``max_tasks_in_memory``.
        """
        state = cls(**limits)
        workers = {name: Worker.restored(worker) for name, worker in saved.workers.items()}
        state.workers.update(workers)
        for uuid, task in saved.itertasks():
            if task.worker is not None:
                name = task.worker.hostname
                task.worker = workers.get(name) or workers.setdefault(name, Worker.restored(task.worker))
            state.tasks[uuid] = task
        state.counter.update(saved.counter)
        state.search_engine.rebuild(state.tasks.items())
        state.rebuild_taskheap()
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        # As Flower's own, so that Flower can load what was saved here
        _, *rest = super().__reduce__()
        return EventsState, *rest
