"""What type checkers see of the library. Never run: mypy and pyright read it.

Wrong uses carry a coded ignore; an ignore that isn't needed is an error.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import assert_type

from durable import (
    DecoratedStep,
    DurableFunction,
    MemoryStore,
    Retry,
    current_run,
    durable,
    recover,
    step,
)


@dataclass
class Order:
    id: str
    total: int


async def fetch(order_id: str, *, deep: bool = False) -> Order:
    return Order(order_id, 1)


def charge(order: Order) -> int:
    return order.total


def later(order: Order) -> Awaitable[int]:
    raise NotImplementedError


@step
async def fetch_step(order_id: str, deep: bool = False) -> Order:
    return Order(order_id, 1)


@step
def charge_step(order: Order) -> int:
    return order.total


@step(key="fetch:{order_id}", retry=Retry(attempts=5), timeout=10, save_errors=(KeyError,))
async def fetch_keyed(order_id: str) -> Order:
    return Order(order_id, 1)


def key_of(order: Order) -> str:
    return order.id


@step(key=key_of, name="charge", aliases=("pay",))
def charge_keyed(order: Order) -> int:
    return order.total


@durable
async def bare(order_id: str, times: int = 1) -> Order:
    return await step("fetch", fetch, order_id)


@durable(store=MemoryStore(), version=2, lease=5)
async def checkout(order_id: str) -> list[int]:
    assert_type(await step("fetch", fetch, order_id, deep=True), Order)
    assert_type(await step("charge", charge, Order("1", 1)), int)
    assert_type(await step("later", later, Order("1", 1)), int)
    assert_type(await step(None, fetch, order_id), Order)
    assert_type(await step.options(timeout=5)("fetch", fetch, order_id), Order)
    assert_type(await step("child", bare, order_id, times=2), Order)
    assert_type(await step("keyed", fetch_keyed, order_id), Order)
    assert_type(await bare(order_id), Order)
    assert_type(await step.map("all", fetch_keyed, [order_id]), list[Order])
    assert_type(await step.map("children", bare, [order_id]), list[Order])
    assert_type(current_run().id, str)

    await step("fetch", fetch, 5)  # type: ignore[call-overload]
    await step("fetch", fetch, order_id, wide=True)  # type: ignore[call-arg]
    await step("fetch", fetch)  # type: ignore[call-overload]
    await step(5, fetch, order_id)  # type: ignore[call-overload]
    step.options(5)  # type: ignore[call-arg]
    return await step.map("charge", charge, [Order("1", 1)], limit=3, key=lambda order: order.id)


class Shop:
    @step
    async def fetch(self, order_id: str) -> Order:
        return Order(order_id, 1)

    @step(key="charge:{order.id}")
    def charge(self, order: Order) -> int:
        return order.total

    @durable
    async def sell(self, order_id: str) -> int:
        order = await self.fetch(order_id)
        assert_type(order, Order)
        assert_type(await step("charge", self.charge, order), int)
        return await self.charge(order)


async def calls(shop: Shop) -> None:
    function: DurableFunction[[str], list[int]] = checkout
    assert_type(await function("1"), list[int])
    assert_type(await bare("1"), Order)
    assert_type(await bare("1", times=3), Order)
    assert_type(await bare.run("id", "1"), Order)
    assert_type(await bare.resume("id"), Order)
    assert_type(await bare.submit("id", "1"), None)
    assert_type(await bare.options(ttl=60).run("id", "1"), Order)
    assert_type(await checkout.run("id", "1"), list[int])
    assert_type(await shop.sell("1"), int)
    assert_type(await shop.sell.run("id", "1"), int)
    assert_type(await shop.sell.resume("id"), int)

    assert_type(await fetch_step("1", deep=True), Order)
    assert_type(await charge_step(Order("1", 1)), int)
    assert_type(await fetch_keyed("1"), Order)
    assert_type(await charge_keyed(Order("1", 1)), int)
    assert_type(await charge_keyed.options(timeout=3)(Order("1", 1)), int)
    assert_type(await shop.fetch("1"), Order)
    assert_type(await shop.charge(Order("1", 1)), int)
    decorated: DecoratedStep[[Order], int] = charge_step
    assert_type(await decorated(Order("1", 1)), int)

    await recover(bare, checkout)

    await bare(1)  # type: ignore[arg-type]
    await bare.run("id")  # type: ignore[call-arg]
    await bare.run(5, "1")  # type: ignore[arg-type]
    await bare.resume("id", "1")  # type: ignore[call-arg]
    await shop.sell(1)  # type: ignore[arg-type]
    await fetch_step(1)  # type: ignore[arg-type]
    await charge_step()  # type: ignore[call-arg]
    await shop.charge("1")  # type: ignore[arg-type]


def not_async(order_id: str) -> Order:
    return Order(order_id, 1)


durable(not_async)  # type: ignore[arg-type]
step(key=5)  # type: ignore[call-overload]
step(retries=5)  # type: ignore[call-overload]
