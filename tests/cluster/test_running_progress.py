"""Progress within one item that a Ray task works on: records and bytes reach the driver while it runs."""

import time
from collections.abc import Iterator

import pytest

from pairwright.cluster import ray_map
from pairwright.data.table.manifest import Input
from pairwright.progress_bar import listening, note_progress


@pytest.mark.usefixtures("ray_cluster")
def test_records_and_bytes_arrive_before_an_item_is_done_and_add_up_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_map, "ACTOR_SECONDS", 0.5)
    seen: list[tuple[float, int, int]] = []

    def work(item: int) -> Iterator[Input]:
        for _ in range(20):
            time.sleep(0.5)
            note_progress(10, 1000)
        yield Input("", item, "")

    with listening(lambda records, size: seen.append((time.monotonic(), records, size))):
        assert len(list(ray_map.map_on_ray(work, [0], [1], Input, what="items done"))) == 1
    end = time.monotonic()
    assert (sum(records for _, records, _ in seen), sum(size for _, _, size in seen)) == (200, 20_000)
    assert len({when for when, records, _ in seen if records}) >= 3
    assert min(when for when, records, _ in seen if records) < end - 3
