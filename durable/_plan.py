"""What has to be known of a step's function, found out once per function."""

from __future__ import annotations

import functools
import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from durable._codec import TypeCodec, return_codec
from durable._fingerprint import function_name


class Nestable(ABC):
    """A function that, called as a step, is a run within the run."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name its runs are recorded under."""

    @property
    @abstractmethod
    def result_codec(self) -> TypeCodec:
        """How its result is stored."""

    @abstractmethod
    async def call_nested(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it as the step that the current frame is in."""


class FunctionPlan:
    """How to call one function as a step, and how to store what it returns."""

    __slots__ = ("codec", "is_async", "is_nested", "is_plain", "name")

    def __init__(
        self, name: str, codec: TypeCodec, is_async: bool, is_nested: bool = False
    ) -> None:
        self.name: str = name
        self.codec: TypeCodec = codec
        self.is_async: bool = is_async
        self.is_nested: bool = is_nested
        self.is_plain: bool = is_async and not is_nested


class Plans:
    """The plans of the functions that one event loop uses as steps.

    Functions are held weakly, so a lambda made in a loop leaves nothing behind.
    """

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[Any, FunctionPlan] = weakref.WeakKeyDictionary()
        self._plain = TypeCodec()
        # A weak lookup costs as much as the rest of a replay, and steps come in rows. This holds
        # one function longer than needed.
        self._last_fn: Any = None
        self._last_plan = FunctionPlan("", self._plain, is_async=False)

    def get(self, fn: Callable[..., Any]) -> FunctionPlan:
        """Return the plan of ``fn``."""
        if fn is self._last_fn:
            return self._last_plan
        plan = self._find(fn)
        self._last_fn, self._last_plan = fn, plan
        return plan

    def _find(self, fn: Callable[..., Any]) -> FunctionPlan:
        # A bound method is a new object each time; its function stays.
        owner = fn.__func__ if isinstance(fn, MethodType) else fn
        try:
            plan = self._plans.get(owner)
            if plan is None:
                plan = self._plans[owner] = self._make(fn)
        except TypeError:  # no weak reference, or no hash
            return make_plan(fn)
        return plan

    def _make(self, fn: Callable[..., Any]) -> FunctionPlan:
        if isinstance(fn, FunctionType) and not (fn.__annotations__ or hasattr(fn, "__wrapped__")):
            is_async = bool(fn.__code__.co_flags & inspect.CO_COROUTINE)
            return FunctionPlan(function_name(fn), self._plain, is_async)
        return make_plan(fn)


def make_plan(fn: Any) -> FunctionPlan:
    """Return the plan of the callable ``fn``, worked out anew."""
    if isinstance(fn, Nestable):
        return FunctionPlan(fn.name, fn.result_codec, is_async=True, is_nested=True)
    # An inherited method has one name, whatever class it's called on.
    name = function_name(fn.__func__ if type(fn) is MethodType else fn)
    return FunctionPlan(name, return_codec(fn), is_async(fn))


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether calling ``fn`` gives an awaitable without doing the work."""
    if isinstance(fn, functools.partial):
        return is_async(fn.func)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        inspect.getattr_static(type(fn), "__call__", None)
    )


def parameters_of(fn: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the names of the parameters that can be given by position, and all defaults.

    Both are empty if they are unknown.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return (), {}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(each.name for each in parameters if each.kind in positional)
    return names, {each.name: each.default for each in parameters if each.default is not each.empty}
