"""Starts a Ray that only this machine and this user can reach: loopback addresses, a private folder, a private token.

Neither Ray 2.60 nor torch 2.13 has a setting for it. Ray takes the machine's address even where it is told 127.0.0.1
(``services.resolve_ip_for_localhost``), unless it believes that it runs on macOS or Windows; its metrics ports, which
ask for no token, then listen on every interface. It gives its folders mode 0777 and its token 0644. torch's TCPStore
listens on every interface whatever its host name. ``test_local_ray.py`` and ``test_training.py`` in
``tests/cluster/`` check the result.
"""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.utils import get_num_cpus
from ray.train.v2._internal.execution.callback import WorkerCallback

from pairwright.data.storage.object_store import own_folder

_LOOPBACK = "127.0.0.1"
_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


def start_local_ray(**options: Any) -> None:
    """Call ``ray.init`` with ``options`` for a Ray of this process; sessions and logs go to ``ray_parent/ray-UID/ray``.

    Raises:
        StoreError: if somebody else made the folder ``TMPDIR/ray-UID``, or others may write to it.
    """
    folder = own_folder(ray_parent(get_default_system_temp_dir()) / f"ray-{os.getuid()}")
    folder.chmod(0o700)  # Ray opens the one below to everybody: nobody else may get there
    guard_token()
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # "use loopback IP as the local IP address"
    try:
        ray.init(address="local", _temp_dir=str(folder / "ray"), **options)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def ray_parent(temporary: str) -> Path:
    """Return the folder for Ray's own: the temporary one, or where its path is not ASCII, ``/tmp``.

    Ray 2.60 encodes the paths of its sockets as ASCII, and cannot start below any other.
    """
    return Path(temporary if temporary.isascii() else "/tmp")  # noqa: S108 - own_folder checks whose it is


@dataclass(frozen=True, slots=True)
class LocalResources:
    """What a Ray of this process has, or would have."""

    num_cpus: int
    num_gpus: int


def local_resources() -> LocalResources:
    """Return the CPUs and GPUs of this process's Ray, be it started already or not."""
    if ray.is_initialized():
        found = ray.cluster_resources()
        return LocalResources(int(found.get("CPU", 0)), int(found.get("GPU", 0)))
    gpus = NvidiaGPUAcceleratorManager
    visible = gpus.get_current_process_visible_accelerator_ids()
    num_gpus = gpus.get_current_node_num_accelerators()
    return LocalResources(int(get_num_cpus()), num_gpus if visible is None else min(num_gpus, len(visible)))


def guard_token() -> None:
    """Restrict Ray's token to this user; an empty file made beforehand keeps its mode when Ray writes the token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # what Ray cannot read or write there, it says itself
        token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        token.touch(mode=0o600)
        if not token.is_symlink() and token.stat().st_uid == os.getuid():
            token.chmod(0o600)


def logs_folder() -> str:
    """Return the folder of this session's Ray logs, the same on every node."""
    node = ray_worker._global_node
    return "session_latest/logs below its folder" if node is None else node.get_logs_dir_path()


class LoopbackRanks(WorkerCallback):
    """Keeps the ranks' connections on loopback where Ray is on loopback; Ray Train calls it before torch connects."""

    def after_init_train_context(self) -> None:
        if ray.util.get_node_ip_address() != _LOOPBACK:
            return
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _INTERFACE
        rendezvous = cast("Any", import_module("torch.distributed.rendezvous"))  # the driver needs no torch for this
        rendezvous.TCPStore = _store_on_loopback


def _store_on_loopback(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
    """Return torch's TCPStore; a serving one takes over a socket that is bound to loopback."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    if is_master:
        options["master_listen_fd"] = socket.create_server((_LOOPBACK, port)).detach()
    return TCPStore(host_name=host_name, port=port, is_master=is_master, **options)
