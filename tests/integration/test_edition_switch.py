"""Nodes, a gateway and a conductor without Ray: each answer is of one version while they go from one to another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_kit import byte_tokenizer, make_served_checkpoint
from version_kit import NUM_TOKENS, PROMPTS, Versions, build_version

from tolbuild.table import open_table
from tolserve.attention_node import AttentionReplica
from tolserve.conductor import Conductor, TableRules
from tolserve.engine.request import SamplingParams
from tolserve.followers import attention_follows, memory_follows
from tolserve.link.fleet import Fleet
from tolserve.membership import HEARTBEAT_S, Member
from tolserve.memory.node import MemoryNode
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.partition import Partition
from tolserve.rollout import ChangeRefusedError, Edition, Plan
from tolserve.serve_config import ServeConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions.make(tmp_path_factory.mktemp("versions"))


class Deployment:
    """P memory nodes, one attention node, one gateway, told of each other by a conductor whose clock we have."""

    def __init__(self, made: Versions, *, num_partitions: int, **settings: Any) -> None:
        self.edition = Edition(version=1, num_partitions=num_partitions)
        self.now = 0.0
        self.conductor = Conductor(Plan(deployed="d", serving=self.edition), clock=lambda: self.now)
        self.nodes: dict[str, tuple[MemoryNode, int, int]] = {}
        self.plans: dict[str, Plan] = {}
        self._table = made.table
        self.add_layout(num_partitions)
        config = ServeConfig(checkpoint=made.checkpoint, table=made.table, memory_nodes=num_partitions, **settings)
        addresses = [[node.address] for node, _, _ in self.nodes.values()]
        self.replica = AttentionReplica(config, host="127.0.0.1", edition=self.edition, addresses=addresses)
        self.fleet = Fleet(deadline_s=20)

    def add_layout(self, num_partitions: int) -> None:
        """Memory nodes of one more layout, which hold what the plan says."""
        versions = [one.version for one in (self.conductor.plan.serving,) if one.num_partitions == num_partitions]
        for index in range(num_partitions):
            config = NodeConfig(table=self._table, partition=Partition(index=index, count=num_partitions))
            node = MemoryNode(config, [version or 1 for version in versions]).start()
            self.nodes[f"m{num_partitions}-{index}"] = (node, index, num_partitions)

    async def beat(self) -> Plan:
        """Everyone announces themselves once and follows what they are told."""
        self.now += 2.1 * HEARTBEAT_S if not self.conductor.complete else 0.1
        for name, (node, index, count) in self.nodes.items():
            view = self.conductor.announce(self._member(name, "memory", self._held(node, count), index, count))
            await asyncio.to_thread(memory_follows, node, count, view.plan)
            self.plans[name] = view.plan
        view = self.conductor.announce(self._member("a", "attention", self.replica.editions))
        await asyncio.to_thread(attention_follows, self.replica, view)
        self.plans["a"] = view.plan
        used = [one for one in (view.plan.serving, view.plan.other) if one and one.key in self.fleet.in_use()]
        view = self.conductor.announce(self._member("g", "gateway", tuple(used)))
        self.fleet.serve(view.plan.serving.key)
        self.plans["g"] = view.plan
        await self.fleet.update({"a": self.replica.address})
        await asyncio.sleep(0.05)
        return self.conductor.plan

    async def settle(self) -> None:
        """Until the change is over."""
        for _ in range(400):
            if (await self.beat()).stage == "steady":
                return
        raise AssertionError(f"still {self.conductor.plan}")

    def _member(self, name: str, kind: Any, editions: Any, partition: int = 0, count: int = 0) -> Member:
        return Member(
            name=name,
            kind=kind,
            address=self.nodes[name][0].address if kind == "memory" else ("h", 1),
            partition=partition,
            num_partitions=count,
            plan=self.plans.get(name),
            editions=editions,
        )

    @staticmethod
    def _held(node: MemoryNode, count: int) -> tuple[Edition, ...]:
        return tuple(Edition(version=version, num_partitions=count) for version in node.versions)

    def close(self) -> None:
        self.replica.stop()
        for node, _, _ in self.nodes.values():
            node.stop()


@pytest.fixture
def deployments() -> Iterator[list[Deployment]]:
    made: list[Deployment] = []
    yield made
    for one in made:
        one.close()


class Clients:
    """Requests again and again, of several generations each; every answer is compared with the version it names."""

    def __init__(self, fleet: Fleet, texts: dict[str, list[str]]) -> None:
        self._fleet = fleet
        self._texts = texts
        self.seen: dict[str, int] = {}
        self.stop = False

    async def await_more(self, fingerprint: str, running: list[asyncio.Task[None]]) -> None:
        """Return when some more answers have named a version, or a client has failed."""
        target = self.seen.get(fingerprint, 0) + 3
        while self.seen.get(fingerprint, 0) < target and not any(task.done() for task in running):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def run(self, turn: int) -> None:
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        while not self.stop:
            turn += 1
            chosen = [turn % 4, (turn + 1) % 4]
            submission = self._fleet.submit([(PROMPTS[i], params) for i in chosen], stream=turn % 2 == 0)
            ids: list[list[int]] = [[], []]
            num_open = 2
            while num_open:
                for index, output in await submission.next():
                    assert output.error is None, output.error
                    ids[index] += [token.token_id for token in output.tokens]
                    num_open -= output.finished
            texts = [byte_tokenizer().decode(part, skip_special_tokens=False) for part in ids]
            assert texts == [self._texts[submission.fingerprint][i] for i in chosen]
            self.seen[submission.fingerprint] = self.seen.get(submission.fingerprint, 0) + 1


def test_answers_are_of_the_version_that_they_name_on_the_way_there_and_back(
    made: Versions, deployments: list[Deployment]
) -> None:
    async def run() -> None:
        deployment = Deployment(made, num_partitions=2, cache_share=0.3, max_num_seqs=3, kv_cache_tokens=192)
        deployments.append(deployment)
        await deployment.beat()
        clients = Clients(deployment.fleet, made.texts)
        running = [asyncio.create_task(clients.run(turn)) for turn in range(3)]
        for version in (2, 1):
            deployment.conductor.change(version=version)
            await deployment.settle()
            assert [node.versions for node, _, _ in deployment.nodes.values()] == [(version,), (version,)]
            assert deployment.replica.editions == (Edition(version=version, num_partitions=2),)
            await clients.await_more(made.fingerprint(version), running)
        clients.stop = True
        await asyncio.gather(*running)
        assert set(clients.seen) == {made.fingerprint(1), made.fingerprint(2)}
        stats = deployment.replica._engine.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]

    asyncio.run(run())


def test_other_partitions_take_over_without_a_failed_request(made: Versions, deployments: list[Deployment]) -> None:
    async def run() -> None:
        deployment = Deployment(made, num_partitions=1)
        deployments.append(deployment)
        await deployment.beat()
        clients = Clients(deployment.fleet, made.texts)
        running = [asyncio.create_task(clients.run(turn)) for turn in range(2)]
        deployment.add_layout(3)
        deployment.conductor.change(num_partitions=3)
        await deployment.settle()
        assert [node.versions for node, _, _ in deployment.nodes.values()] == [(), (1,), (1,), (1,)]
        await clients.await_more(made.fingerprint(1), running)
        clients.stop = True
        await asyncio.gather(*running)
        assert set(clients.seen) == {made.fingerprint(1)}

    asyncio.run(run())


def test_a_third_version_has_to_wait_and_a_new_conductor_goes_on(made: Versions, deployments: list[Deployment]) -> None:
    async def run() -> None:
        deployment = Deployment(made, num_partitions=1)
        deployments.append(deployment)
        await deployment.beat()
        deployment.conductor.change(version=2)
        with pytest.raises(ChangeRefusedError, match="version 3 on 1 partition would be the third"):
            deployment.conductor.change(version=3)
        await deployment.beat()
        first = deployment.conductor.plan
        deployment.conductor = Conductor(Plan(deployed="d", serving=deployment.edition), clock=lambda: deployment.now)
        with pytest.raises(ChangeRefusedError, match="has just started"):
            deployment.conductor.change(version=3)
        await deployment.settle()
        assert deployment.conductor.plan.serving.version == 2 and deployment.conductor.plan.epoch > first.epoch

    asyncio.run(run())


def test_bands_that_two_versions_share_are_in_memory_once(made: Versions) -> None:
    node = MemoryNode(NodeConfig(table=made.table, version=1))
    node.load(3)
    node.load(2)
    bands = {version: [id(rows) for rows in held.store.bands] for version, held in node._holdings._held.items()}  # type: ignore[attr-defined]
    assert bands[1] == bands[3] and not set(bands[1]) & set(bands[2])
    node.drop(1)
    assert node.versions == (3, 2)
    with open_table(made.table, version=3) as table:
        assert table.manifest.identity == node.identity
    node.stop()


def test_a_version_of_another_model_is_refused(made: Versions, tmp_path: Path) -> None:
    rules = TableRules(url=made.table)
    assert rules.check(1, None) == rules.versions()[-1]
    with pytest.raises(ChangeRefusedError, match="has 2 bands; the endpoint pins 3"):
        TableRules(url=made.table, pinned_bands=3).check(1, 2)
    build_version(make_served_checkpoint(tmp_path / "other", seed=4), made.table, codes="fp32")
    with pytest.raises(ChangeRefusedError, match=r"version 4 of .* was built from the checkpoint"):
        rules.check(1, None)
