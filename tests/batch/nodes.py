"""A Ray cluster on this machine, and the machines of it to be killed."""

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = 80 * 2**20  # of each machine's store of objects, the least that Ray takes


class Nodes:
    """A head without processors, and machines with one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False},
        )
        self.address = self._cluster.address

    def add(self):
        return self._cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def kill(self, node) -> int:
        """End a machine as a power cut does: its raylet and all processes below it, without a word; count them."""
        raylet = node.all_processes["raylet"][0].process.pid
        below = children(raylet)
        for process in (raylet, *below):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return 1 + len(below)

    def end(self) -> None:
        self._cluster.shutdown()


def children(process: int) -> list[int]:
    """Return the processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, layer = [], [process]
    while layer:
        layer = [child for child, parent in parents.items() if parent in layer]
        found += layer
    return found


@contextmanager
def nodes():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Nodes()
    try:
        yield made
    finally:
        made.end()
