"""The workers of an engine compute as this process does: on the same providers, and to the same last bits.

Another version of ONNX Runtime and another kind of processor compute others, and so other files: that is refused.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import onnxruntime as ort

from amct_onnx.engine.engine import Engine, Work
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.errors import EngineError
from amct_onnx.run.last_bits import last_bits
from amct_onnx.run.providers import Providers, on_providers

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def runtime_version() -> str:
    """The version of ONNX Runtime in this process."""
    return str(ort.__version__)


@contextmanager
def opened_workers(engine: str | Engine, providers: Providers | None) -> Iterator[Engine]:
    """An engine, as `opened_engine` takes it, and sessions on these providers while the block runs, also those of its
    workers. Raises as `opened_engine` does; work raises EngineError where a worker computes otherwise."""
    with on_providers(providers), opened_engine(engine) as workers:
        yield workers if workers.alone else _AlikeWorkers(workers, providers)


class _AlikeWorkers:
    """An engine whose workers compute as this process does."""

    alone = False

    def __init__(self, engine: Engine, providers: Providers | None) -> None:
        self._engine, self._providers = engine, providers
        self.workers = engine.workers

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        return self._engine.map(self._alike(work), items)

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        return self._engine.merge(self._alike(work), items, merge)

    def close(self) -> None:
        self._engine.close()

    def _alike(self, work: Work[Item, Outcome]) -> Work[Item, Outcome]:
        return _Alike(work=work, providers=self._providers, version=runtime_version(), bits=last_bits())


@dataclass(frozen=True, kw_only=True)
class _Alike(Generic[Item, Outcome]):
    """A work whose sessions are on these providers, and are to compute what this `version` of ONNX Runtime and numpy
    do on a processor with these last `bits`."""

    work: Work[Item, Outcome]
    providers: Providers | None
    version: str
    bits: str

    @contextmanager
    def open(self) -> Iterator[Callable[[Item], Outcome]]:
        if runtime_version() != self.version:
            raise EngineError(
                f"A worker has onnxruntime {runtime_version()}, and this process has {self.version}: install the same "
                "version on all nodes, since others compute other last bits."
            )
        if last_bits() != self.bits:
            raise EngineError(
                f"A worker on {platform.node() or 'another machine'} computes other last bits than this process, and "
                "the files would be others: its processor has other instructions, as AVX2 for AVX-512, or its numpy is "
                "another one. Use processors of one kind, with the same packages."
            )
        with on_providers(self.providers), self.work.open() as do:
            yield partial(self._do, do)  # some open sessions there

    def _do(self, do: Callable[[Item], Outcome], item: Item) -> Outcome:
        with on_providers(self.providers):
            return do(item)
