"""Workarounds for Ray 2.60, and all private names of Ray Train that the driver and the ranks use.

Each says what is wrong and where it is known upstream. tests/contracts/test_workarounds.py has a test for each, which
fails once the workaround is not needed any more. ``runs/ray_snapshot.py`` is one more, without Ray;
``run_metrics.label_value`` another; ``cluster/local_ray.py`` holds those that keep Ray on loopback.
"""

import os
import re
import time
from typing import Any
from urllib.parse import quote

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_INTERVAL_S,
)
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

__all__ = ["ElasticPolicy", "RayTrainer", "StorageContext", "UploadAborted", "WorkerCallback", "storage_uri"]

# WorkerCallback: Ray calls one in every worker's main thread, the only one that may set a signal handler. There is no
# public class for it; an object of it is passed as a callback all the same. No upstream issue is known.

WAIT_SECONDS = 0.1
"""Between two looks for nodes of an elastic run that waits for them."""
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def storage_uri(url: str) -> str:
    """Return the address of a run's folder as Ray's ``storage_path``: percent-encoded where it is a remote one.

    pyarrow, which Ray gives it to, takes no letter outside ASCII and no blank in a URI; obstore, by which everything
    else is read, takes both, and decodes percent signs alike. No upstream issue is known.
    """
    return quote(_LONE_PERCENT.sub("%25", url), safe="%:/") if "://" in url else url


# StorageContext: what ``ray.train.get_context().get_storage()`` returns, a public method with a private type. Its
# ``persist_current_checkpoint`` is what Ray calls itself where a run brings no upload function. No upstream issue.


class UploadAborted(BaseException):
    """Ends a checkpoint's upload without a report.

    Not an Exception: Ray handles any Exception of an upload as a lost worker, and would replace the whole group, which
    would meet the same storage again, ``max_failures`` times. Upstream: ray-project/ray#47939 and #55350, both open.
    """


class ElasticPolicy(ElasticScalingPolicy):
    """Asks in turn for the most ranks and for fewer: the least to start with, one more to grow.

    Ray asks for the most alone, and its autoscaler starts no node for a request that it cannot meet whole. So where a
    cluster may have fewer nodes than that, or another run has some of them, no run would start. No upstream issue is
    known.
    """

    _num_ranks = 0
    _since = 0.0
    """From when on the turns are counted; the first is for the most."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        self._since = time.monotonic()
        super().after_controller_start(train_run_context)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        if self._num_ranks:
            self._num_ranks = 0
            self._ask_for_most()
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision) and self._asks_for_fewer():
            # Nodes for some have come. What else is there shows only in an answer to a request for the most.
            self._ask_for_most()
            return NoopDecision()
        if isinstance(decision, NoopDecision):
            time.sleep(WAIT_SECONDS)  # Ray asks again at once, which takes a core of the head for as long as it waits
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        if not self._num_ranks:
            self._since = time.monotonic()
        self._num_ranks = worker_group_state.num_workers
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _get_num_workers_for_resource_request(self) -> int:
        most = self.scaling_config.max_workers
        fewer = self._num_ranks + 1 if self._num_ranks else self.scaling_config.min_workers
        return min(most, fewer) if self._asks_for_fewer() else most

    def _ask_for_most(self) -> None:
        self._since = time.monotonic()
        self._send_resource_request()
        self._latest_reserved_resources_query_time = float("-inf")

    def _asks_for_fewer(self) -> bool:
        return int((time.monotonic() - self._since) // AUTOSCALING_REQUESTS_INTERVAL_S) % 2 == 1


class RayTrainer(TorchTrainer):
    """Ray's trainer with three private methods overridden."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out the callback that shards datasets: there are none, and its actor delays each start.

        No upstream issue is known.
        """
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing: Ray would abort the run at Ctrl-C, where ``ShutdownSignals`` first requests a checkpoint.

        Upstream: ray-project/ray#53600 brought the handler, which no setting turns off.
        """

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> ray.train.Result:
        """Set RAY_ADDRESS for the controller, whose placement group cleaner needs it.

        The cleaner asks Ray's state API whether the controller is alive, without an address: that is the cluster which
        was started last on the machine. If that one does not know the controller, the run loses its nodes; if it has
        ended, every run waits 12 s for an answer at its end. No upstream issue is known. An elastic run gets its policy
        here, too.
        """
        if isinstance(self.scaling_config.num_workers, tuple):
            controller_init_kwargs["scaling_policy"] = ElasticPolicy(self.scaling_config)
        ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
        before = os.environ.get("RAY_ADDRESS")
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            return super()._initialize_and_run_controller(**controller_init_kwargs)
        finally:
            ENV_VARS_TO_PROPAGATE.discard("RAY_ADDRESS")
            os.environ.pop("RAY_ADDRESS") if before is None else os.environ.update(RAY_ADDRESS=before)
