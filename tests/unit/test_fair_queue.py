"""The bounded round-robin queue."""

from __future__ import annotations

import pytest

from flower_proxy.auth.fair_queue import FairQueue


@pytest.mark.parametrize(
    ("put", "served", "refused"),
    [
        pytest.param("", "", "", id="empty"),
        pytest.param("a1 a2 a3", "a1 a2 a3", "", id="fifo-per-client"),
        pytest.param("a1 a2 a3 b1", "a1 b1 a2 a3", "", id="two-clients"),
        pytest.param("a1 a2 b1 b2 c1", "a1 b1 c1 a2 b2", "", id="three-clients"),
        pytest.param("a1 a2 a3 a4", "a1 a2 a3", "a4", id="too-many-of-one-client"),
        pytest.param("a1 a2 a3 b1 b2 c1", "a1 b1 c1 a2 b2", "a3", id="longest-queue-makes-room-for-a-new-client"),
        pytest.param("a1 b1 b2 b3 c1 c2", "a1 b1 c1 b2 c2", "b3", id="longest-queue-makes-room-for-the-shortest"),
        pytest.param("a1 a2 b1 b2 c1 d1", "a1 b1 c1 d1 b2", "a2", id="among-equals-the-next-served-makes-room"),
        pytest.param("a1 a2 b1 b2 c1 c2", "a1 b1 c1 a2 b2", "c2", id="no-client-has-two-more"),
        pytest.param("a1 b1 c1 d1 e1 f1", "a1 b1 c1 d1 e1", "f1", id="as-many-clients-as-slots"),
    ],
)
def test_clients_are_served_round_robin(put: str, served: str, refused: str) -> None:
    queue: FairQueue[str] = FairQueue(per_client=3, total=5)
    dropped = [item for item in (queue.put(name[0], name) for name in put.split()) if item is not None]
    assert len(queue) == len(served.split())
    assert [queue.pop() for _ in range(len(queue))] == served.split()
    assert dropped == refused.split()


def test_a_returning_client_is_served_last() -> None:
    queue: FairQueue[str] = FairQueue(per_client=3, total=5)
    for name in ("a1", "b1", "b2"):
        queue.put(name[0], name)
    assert queue.pop() == "a1"
    queue.put("a", "a2")
    assert [queue.pop() for _ in range(3)] == ["b1", "a2", "b2"]


def test_popping_from_an_empty_queue_raises_lookup_error() -> None:
    queue: FairQueue[str] = FairQueue(per_client=1, total=1)
    queue.put("a", "a1")
    queue.pop()
    assert not queue
    with pytest.raises(LookupError):
        queue.pop()
