"""A whole build from a config: plan, look at what is there, run what is left, commit, sum up."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import torch

from tolbuild.build import Worker, WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import Checkpoint, open_checkpoint
from tolbuild.drive.commit import commit, remove_partials
from tolbuild.drive.device import describe_time, load_device
from tolbuild.drive.known import look, with_ranks_of
from tolbuild.drive.owner import Claim, claimed
from tolbuild.drive.place import State, check_objects, examine, find_complete
from tolbuild.drive.pool import Event, Pool, ThreadPool, closing, run_schedule
from tolbuild.drive.progress import Progress
from tolbuild.drive.schedule import Schedule
from tolbuild.drive.summary import describe_plan, summarise
from tolbuild.drive.voice import Voice
from tolbuild.plan import Plan, make_plan
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import probe_conditional_put
from tolbuild.table.stats import LayerEnergy, table_energies
from tolbuild.table.store import Credentials, Store, check_writable, open_store
from tolbuild.weighting import Weighting, load_weighting
from tolbuild.worker.partials import pack, weights_key

OpenPool = Callable[[BuildConfig, WorkOrder], AbstractContextManager[Pool]]


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did.

    manifest: of the version that now holds the table; None after a dry run. published: whether this run made it.
    seconds: wall time of `open`, `cells` and `commit`, and worker time of each stage and `transfer`.
    """

    plan: Plan
    manifest: Manifest | None
    published: bool
    seconds: dict[str, float] = field(default_factory=dict)
    text: str

    def record(self) -> dict[str, object]:
        """The result for programs: what `--log-json` says at the end."""
        found = self.manifest
        layers = (
            []
            if found is None
            else [
                {"layer": s.layer, "rank": s.rank, "relative_error": s.relative_error, "energy_kept": s.energy_kept}
                for s in found.layer_stats
            ]
        )
        return {
            "plan_hash": self.plan.plan_hash,
            "version": None if found is None else found.version,
            "published": self.published,
            "table_bytes": None if found is None else found.total_bytes,
            "seconds": self.seconds,
            "layers": layers,
            "text": self.text,
        }


@contextmanager
def thread_pool(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
    """Threads of this process as workers (`--no-ray`)."""
    num_workers = config.workers or (1 if _on_gpu(config) else len(os.sched_getaffinity(0)))
    with closing(ThreadPool(Worker(order, lanes=num_workers), num_workers)) as pool:
        yield pool


def build_table(config: BuildConfig, open_pool: OpenPool = thread_pool) -> BuildResult:
    """Build and publish the table of a config, or find that it is there.

    Args:
        open_pool: gives the workers; threads of this process unless told otherwise.

    Raises:
        ValueError: options that fit no table of this checkpoint.
        TableConflictError: another table is at the place, or another process took the build over.
        TableCorruptError: the table is there, and objects of it are missing or cut.
        ToLError: checkpoint or store failed; what was finished stays, and the same call goes on from there.
    """
    began, voice = time.perf_counter(), Voice(as_json=config.log_json)
    credentials = Credentials.from_environment()
    check_writable(absolute(config.table))
    checkpoint = open_checkpoint(config.checkpoint, credentials=credentials)
    weighting = load_weighting(
        config, checkpoint.config.vocab_size, checkpoint.config.num_hidden_layers, checkpoint.fingerprint
    )
    plan = make_plan(config, checkpoint.config, checkpoint.fingerprint, weighting)
    if config.dry_run:
        return _dry_run(plan, config, credentials)
    order = _order(config, plan, checkpoint, credentials)
    store = open_store(order.table, credentials)
    try:
        complete = find_complete(store, plan)
        if complete is not None:
            check_objects(store, complete)
            remove_partials(store, plan)
            return _already_there(plan, complete, store.url)
        if not config.single_writer:
            probe_conditional_put(store)
        with claimed(
            store, plan.plan_hash, task="python -m tolbuild.run", say=voice.say, beside=config.new_version
        ) as claim:
            assert claim is not None, "a claim that waits is had in the end"
            return _build(store, config, order, weighting, claim, open_pool, voice, began)
    finally:
        store.close()


def _build(
    store: Store,
    config: BuildConfig,
    order: WorkOrder,
    weighting: Weighting,
    claim: Claim,
    open_pool: OpenPool,
    voice: Voice,
    began: float,
) -> BuildResult:
    """Build a plan that is owned by this process."""
    plan = order.plan
    state = examine(store, plan, new_version=config.new_version)
    for note in state.notes:
        voice.say(note)
    if state.earlier is not None:
        check_objects(store, state.earlier)
    if state.complete is not None:
        check_objects(store, state.complete)
        return _already_there(plan, state.complete, store.url)
    if weighting.token_weights_V is not None:
        store.write(weights_key(plan), pack({"weights": torch.from_numpy(weighting.token_weights_V)}))
    opened = time.perf_counter()
    progress = Progress(plan, Schedule(plan, state.done).total, spools=_spools(config, plan), voice=voice)
    _run_cells(order, state, open_pool(config, order), progress, claim)
    ran = time.perf_counter()
    claim.confirm()
    committed = commit(store, plan, state, single_writer=config.single_writer)
    if not committed.by_us:
        return _already_there(plan, committed.manifest, store.url)
    manifest, ended = committed.manifest, time.perf_counter()
    plan, energies = with_ranks_of(plan, manifest), table_energies(store, manifest)
    seconds = {"open": opened - began, "cells": ran - opened, "commit": ended - ran} | dict(progress.seconds)
    text = summarise(plan, manifest, store.url, energies, seconds=seconds, num_resumed=len(state.done))
    return BuildResult(plan=plan, manifest=manifest, published=True, seconds=seconds, text=text)


def _dry_run(plan: Plan, config: BuildConfig, credentials: Credentials | None) -> BuildResult:
    """The plan in words, with what an earlier run of it has left at the table's place."""
    energies: dict[int, LayerEnergy] = {}
    if plan.needs_sums:
        store = open_store(absolute(config.table), credentials)
        try:
            plan, energies = look(store, plan)
        finally:
            store.close()
    spools = _spools(config, plan)
    text = describe_plan(plan, energies, spools=spools)
    if config.device_description is not None:
        device = load_device(config.device_description)
        text += "\n" + describe_time(plan, device, num_workers=config.workers or 1, spools=spools)
    return BuildResult(plan=plan, manifest=None, published=False, text=text)


def _order(config: BuildConfig, plan: Plan, checkpoint: Checkpoint, credentials: Credentials | None) -> WorkOrder:
    return WorkOrder(
        plan=plan,
        checkpoint=absolute(config.checkpoint),
        model=checkpoint.config,
        digests=checkpoint.digests,
        table=absolute(config.table),
        credentials=credentials,
        device=config.device,
        rows=config.rows,
        run=f"{plan.plan_hash}-{secrets.token_hex(4)}",
        spool_dir=config.spool_dir,
        spool_bytes=int(config.spool_gb * 1e9),
    )


def _already_there(plan: Plan, manifest: Manifest, url: str) -> BuildResult:
    text = f"already complete: {url} version {manifest.version} is this checkpoint with these options"
    return BuildResult(plan=with_ranks_of(plan, manifest), manifest=manifest, published=False, text=text)


def _spools(config: BuildConfig, plan: Plan) -> bool:
    return plan.needs_sums and (config.rows == "spool" or (config.rows == "auto" and not _on_gpu(config)))


def _run_cells(
    order: WorkOrder, state: State, opened: AbstractContextManager[Pool], progress: Progress, claim: Claim
) -> None:
    def on_event(event: Event) -> None:
        claim.check()
        progress.event(event)

    schedule = Schedule(order.plan, state.done)
    if state.earlier is not None:
        progress.say(f"version {state.earlier.version} is this checkpoint with these options: publishing it again")
        return
    if state.done:
        progress.say(f"resuming: {len(state.done)} cells are done, {schedule.num_left} are left")
    if not schedule.num_left:
        return
    try:
        with opened as pool:
            progress.start(pool)
            run_schedule(schedule, pool, on_event, progress.tick)
    finally:
        progress.close()


def absolute(url: str) -> str:
    """The URL as any process of this machine would write it: a plain path is taken from the current folder."""
    return url if urlsplit(url).scheme else str(Path(url).absolute())


def _on_gpu(config: BuildConfig) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()
