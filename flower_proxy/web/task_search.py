"""Search for tasks while other requests and events are handled."""

from __future__ import annotations

from flower_proxy._flower import BaseHandler
from flower_proxy._slices import CancelledWorkError, in_slices
from flower_proxy.events.search import PendingSearchError


class TaskSearchMixin(BaseHandler):
    """Mixin for Flower's handlers that search for tasks with `SearchResults`."""

    _is_closed = False

    def on_connection_close(self) -> None:
        """Stop the search of a client that has disconnected."""
        super().on_connection_close()
        self._is_closed = True

    async def get(self, *args: str, **kwargs: str) -> None:
        """Handle GET: call Flower's handler for the query, then, with the result of the search, for the response."""
        try:
            super().get(*args, **kwargs)
        except PendingSearchError as pending:
            query = pending.query
        else:
            return
        state = self.application.events.state
        results = state.search_engine
        # One at a time, since concurrent searches take longer
        async with results.lock:
            try:
                page = await in_slices(query.search(list(state.tasks.data.values())), lambda: self._is_closed)
            except CancelledWorkError:
                return
        results.page = page
        try:
            super().get(*args, **kwargs)
        finally:
            results.page = None

    async def post(self, *args: str, **kwargs: str) -> None:
        """Handle POST like GET, as the tasks page sends its long query."""
        await self.get(*args, **kwargs)
