"""A cluster of Ray on this machine with two nodes, each with a processor and a store of its own; one can be lost."""

from __future__ import annotations

import atexit
import logging
import os
from typing import Any


class RayNodes:
    """The cluster, which this process has joined, as a user's own script may have done."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # of what Ray says of lost workers; read when it is imported
        import ray
        from ray.cluster_utils import Cluster

        self._node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 200 << 20}
        # Ray notices within seconds what takes it some tens of seconds otherwise.
        soon = {"health_check_period_ms": 300, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
        soon["object_manager_pull_timeout_ms"] = 500
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**self._node, "_system_config": soon})
        self._second: Any = self._cluster.add_node(**self._node)
        ray.init(address=self._cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        atexit.register(self.end)

    def lose_one(self) -> None:
        """The second node is gone from one moment to the other, and whatever lay on it."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def add_one(self) -> None:
        """It comes back, with nothing of what it had. On a busy machine Ray may need more than one try to start it."""
        for last in (False, False, True):
            if self._second is not None:
                return
            try:
                self._second = self._cluster.add_node(wait=False, **self._node)
            except Exception:
                if last:
                    raise

    def end(self) -> None:
        """End both nodes."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()
