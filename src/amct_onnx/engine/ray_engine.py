"""An engine on Ray: workers on this machine, or on the nodes of a cluster, which may come and go.

This is the only module that imports ray, and it is imported only where somebody asks for such an engine.

A worker is an actor with one processor. It opens a work once, and stays for the works that follow. Each processor of
the cluster has one: a lost one is replaced, and a node that comes back gets new ones.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import platform
import re
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import reduce
from typing import Any, TypeVar

import numpy as np

from amct_onnx.engine.engine import Work
from amct_onnx.engine.processors import THREADS, processors
from amct_onnx.engine.scattered import (
    Hand,
    LostThingError,
    LostWorkerError,
    Merge,
    Said,
    map_scattered,
    merge_scattered,
)
from amct_onnx.engine.worker import KeptLog
from amct_onnx.errors import EngineError, one_line
from amct_onnx.version import VERSION
from amct_onnx.words import is_command, of_the_command_line

# What Ray has to say of lost workers would go to stdout. It asks for this while it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

import ray
from ray import cloudpickle
from ray import exceptions as lost

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_PAUSE = 1.0  # seconds between two looks at the size of the cluster
_SILENCE = 10.0  # seconds without workers until that is said
_KNOCK = 5.0  # seconds to find out whether anybody listens at an address
_MOST_FAILED = 4  # workers in a row that do not start
_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)")
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1", "RAY_worker_niceness": "0"}
_LONGEST_FOLDER = 20  # letters of a folder with sockets of Ray, whose names may have about a hundred in all
_log = logging.getLogger("amct_onnx.Engine")
_LOST_WORKER = (lost.RayActorError, lost.WorkerCrashedError, lost.OutOfMemoryError, lost.NodeDiedError)


class RayEngine:
    """Workers on Ray, one for each processor of the cluster.

    address: of the cluster to join: `ray://HOST:PORT`, `HOST:PORT` or `auto`. None for the one that RAY_ADDRESS names
    in the environment, or else for workers on this machine, which `close` ends. A cluster that this process has joined
    before is used whatever the address. Whatever was there before is left as it was.

    For a worker the arrays of works and items are read-only. Raises EngineError if there is no cluster at the address,
    or if it does not fit: another version of Ray, Python or amct_onnx.
    """

    alone = False

    def __init__(self, address: str | None = None) -> None:
        with ExitStack() as stack:
            stack.enter_context(_connected(address))
            self._crew = _RayCrew()
            stack.callback(self._crew.dismiss)
            self._stack = stack.pop_all()
        self.workers = self._crew.grow()

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        """The outcome of each item, in their order. `Engine.map` tells the rest."""
        self.workers = self._crew.grow()
        return map_scattered(self._crew, work, items)

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        """All outcomes merged to one. `Engine.merge` tells the rest."""
        self.workers = self._crew.grow()
        return merge_scattered(self._crew, work, items, merge)

    def close(self) -> None:
        """Let the workers go, and end the cluster if it was started here."""
        self._stack.close()


class _RayCrew:
    """All workers: as many as the cluster has processors, whatever becomes of them. It is a `Crew`."""

    def __init__(self) -> None:
        self.hands: list[Hand] = []
        self.nodes: Collection[str] = ()
        self._starting: dict[Any, Hand] = {}  # by what they will say when they are there
        self._size, self._looked, self._alone, self._failed = 1, -_PAUSE, time.monotonic(), 0
        self._settings = sys.path, is_command(), logging.getLogger("amct_onnx").getEffectiveLevel()
        self.grow()

    def grow(self) -> int:
        if time.monotonic() - self._looked >= _PAUSE:
            self._looked = time.monotonic()
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self.nodes = {str(node["NodeID"]) for node in nodes}
            self._size = max(1, sum(int(node["Resources"].get("CPU", 0)) for node in nodes))
            for _ in range(self._size - len(self.hands) - len(self._starting)):
                self._await(Hand(_ACTOR.remote(*self._settings)))
        return self._size

    def pack(self, value: Any) -> tuple[Any, int]:
        try:
            packed = _packed(value)
        except Exception as reason:
            raise EngineError(f"The work cannot be sent to other processes: {one_line(reason)}.") from reason
        return packed, len(packed[0]) + sum(array.nbytes for array in packed[1])

    def put(self, packed: Any) -> Any:
        return ray.put(packed)

    def give(self, hand: Hand, run: int, work: Any, arguments: Sequence[Any], has_item: bool) -> tuple[Any, Any]:
        said, result = hand.actor.do.remote(run, [work], has_item, *arguments)
        return said, result

    def ended(self, jobs: Sequence[Any]) -> Sequence[Any]:
        waited = [*jobs, *self._starting]
        if not waited:  # all of them work for somebody else
            time.sleep(_PAUSE / 100)
            return []
        ready, _ = ray.wait(waited, timeout=_PAUSE, fetch_local=False)
        if ready:
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
        for one in ready:
            if one in self._starting:
                self._welcome(one)
        if self.hands:
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > _SILENCE:
            self._alone = math.inf
            _log.warning("Ray has no processor that is free: waiting for one.")
        return [one for one in ready if one in jobs]

    def said(self, job: Any) -> Said:
        try:
            said: Said = ray.get(job)
        except _LOST_WORKER as error:
            raise LostWorkerError(type(error).__name__) from None
        except lost.ObjectLostError:
            raise LostThingError from None
        except lost.RayError as error:
            reason = getattr(error, "cause", None) or error
            raise EngineError(f"Ray cannot do the work: {type(reason).__name__}: {one_line(reason)}") from error
        return said

    def fetch(self, reference: Any) -> Any:
        try:
            head, arrays = ray.get(reference)
        except lost.ObjectLostError:
            raise LostThingError from None
        return pickle.loads(head, buffers=[bytearray(array) for array in arrays])  # they may outlive the store

    def lose(self, hand: Hand) -> None:
        _kill(hand)
        if hand in self.hands:
            self.hands.remove(hand)
        for idle in [other for other in self.hands if not other.jobs]:  # are they still there?
            self.hands.remove(idle)
            self._await(idle)
        self._looked = -_PAUSE

    def close(self, run: int, hands: Sequence[Hand], patience: float) -> Sequence[Said]:
        closing = {hand.actor.close.remote(run): hand for hand in hands}
        if not closing:
            return []
        ready, late = ray.wait(list(closing), num_returns=len(closing), timeout=patience)
        said = []
        for one in ready:
            with suppress(lost.RayError):
                said.append(ray.get(one))
        for one in late:
            self.lose(closing[one])
        return said

    def dismiss(self) -> None:
        for hand in [*self.hands, *self._starting.values()]:
            _kill(hand)

    def _await(self, hand: Hand) -> None:
        self._starting[hand.actor.hello.remote()] = hand

    def _welcome(self, hello: Any) -> None:
        """Take in a worker that has said hello, or is lost. Raises EngineError if none can be made."""
        hand = self._starting.pop(hello)
        try:
            version, node = ray.get(hello)
        except lost.RayError as error:
            if hand.node:  # it was one of us, and is gone
                self.lose(hand)
                return
            _kill(hand)
            if "ModuleNotFoundError" in str(error):
                raise EngineError(_other_version(_version_there())) from None
            self._failed += 1
            others = [*self.hands, *(one for one in self._starting.values() if one.node)]
            if self._failed >= _MOST_FAILED and not others:  # with others it may be a node that was lost meanwhile
                said = " ".join(line for line in str(error).splitlines() if not line.startswith("\t"))
                raise EngineError(f"Ray cannot start workers: {one_line(said)}") from None
            return
        if version != VERSION:
            raise EngineError(_other_version(f"amct_onnx {version}"))
        self._failed, hand.node = 0, node
        self.hands.append(hand)


class _Worker:
    """A process that does what a driver tells it, with the works open that it has got something of."""

    def __init__(self, path: Sequence[str], is_command: bool, level: int) -> None:
        os.environ[THREADS] = "1"
        sys.path += [folder for folder in path if folder not in sys.path]  # with modules of the user's
        self._log, logger = KeptLog(), logging.getLogger("amct_onnx")
        logger.addHandler(self._log)
        logger.propagate = False
        logger.setLevel(level)
        self._open: dict[int, tuple[ExitStack, Callable[[Any], Any], Merge]] = {}
        self._stack = ExitStack()
        if is_command:
            self._stack.enter_context(of_the_command_line())

    def hello(self) -> tuple[str, str]:
        """The version that works here, and the node."""
        return VERSION, ray.get_runtime_context().get_node_id()

    @ray.method(num_returns=2)
    def do(self, run: int, work: Sequence[Any], has_item: bool, *arguments: Any) -> tuple[Said, Any]:
        """What `Crew.give` asks for; the work comes as a reference. What is said comes apart from the outcome, which
        the driver need not fetch then."""
        in_merging = False
        try:
            do, merge = self._opened(run, work[0])
            outcomes = [pickle.loads(head, buffers=arrays) for head, arrays in arguments]
            if has_item:
                outcomes[0] = do(outcomes[0])
            in_merging = True
            packed = _packed(reduce(merge, outcomes))
            return Said(log=self._log.taken()), packed
        except BaseException as error:
            return self._raised(error, in_merging), None

    def close(self, run: int) -> Said:
        try:
            if run in self._open:
                self._open.pop(run)[0].close()
        except BaseException as error:
            return self._raised(error)
        return Said(log=self._log.taken())

    def _opened(self, run: int, reference: Any) -> tuple[Callable[[Any], Any], Merge]:
        if run not in self._open:
            head, arrays = ray.get(reference)
            work, merge = pickle.loads(head, buffers=arrays)
            stack = ExitStack()
            self._open[run] = stack, stack.enter_context(work.open()), merge
        return self._open[run][1:]

    def _raised(self, error: BaseException, in_merging: bool = False) -> Said:
        try:
            pickled = cloudpickle.dumps(error)
            pickle.loads(pickled)
        except Exception:
            pickled = pickle.dumps(EngineError(f"{type(error).__name__}: {one_line(error)}"))
        return Said(log=self._log.taken(), error=pickled, trace=traceback.format_exc(), in_merging=in_merging)


def _packed(value: Any) -> tuple[bytes, list[Any]]:
    """A value, pickled, and its arrays as bytes, uint8[n], which Ray lets lie where it gets them."""
    arrays = list[pickle.PickleBuffer]()
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    return head, [np.frombuffer(array.raw(), np.uint8) for array in arrays]


_ACTOR: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)


def _kill(hand: Hand) -> None:
    with suppress(lost.RayError, ValueError):
        ray.kill(hand.actor)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Ray is there while the block runs."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with ExitStack() as stack:
        if address == "local":
            at = "/tmp" if os.name == "posix" and len(tempfile.gettempdir()) > _LONGEST_FOLDER else None
            folder = tempfile.TemporaryDirectory(prefix="amct_ray_", dir=at, ignore_cleanup_errors=True)
            options |= {"num_cpus": processors(), "include_dashboard": False}
            options["_temp_dir"] = stack.enter_context(folder)
        elif address != "auto":
            _knock(address)
        for name in _SETTINGS.keys() - os.environ.keys():
            stack.callback(os.environ.pop, name, None)
            os.environ[name] = _SETTINGS[name]
        stack.callback(ray.shutdown)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=address, **options)
        except Exception as reason:  # of any class, as where a part of a cluster does not start in time
            raise EngineError(f"Ray at {address}: {one_line(reason)}{_hint(address)}") from reason
        yield


def _knock(address: str) -> None:
    """Raises EngineError if nobody listens there: Ray itself would try for a minute."""
    found, problem = _ADDRESS.fullmatch(address), "this is no address"
    if found:
        try:
            socket.create_connection((found["host"], int(found["port"])), _KNOCK).close()
            return
        except (OSError, OverflowError, UnicodeError) as reason:
            problem = f"nobody answers ({one_line(reason)})"
    raise EngineError(
        f"Ray at {address}: {problem}: give ray://HOST:PORT of the head node of a running cluster, with the port of "
        "its client server (10001 unless set otherwise), or only ray for workers on this machine."
    )


def _hint(address: str) -> str:
    if address == "local":
        return ""
    return (
        f". It has to be a cluster of Ray {ray.__version__} with Python {platform.python_version()}, and if it asks "
        "for tokens, RAY_AUTH_MODE=token has to be set here, too."
    )


def _version_there() -> str:
    def version() -> str:  # it travels as it is: where it runs there may be no such module
        try:
            from amct_onnx.version import VERSION as found  # noqa: N811
        except ImportError:
            return "no amct_onnx"
        return f"amct_onnx {found}"

    return str(ray.get(ray.remote(num_cpus=0, max_retries=0)(version).remote()))


def _other_version(found: str) -> str:
    return f"The cluster has {found}, and this process has amct_onnx {VERSION}: install the same version on all nodes."
