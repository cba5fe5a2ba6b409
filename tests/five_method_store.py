"""A complete store in 25 lines: what anybody has to write, here on a dictionary."""

import re
import time


class FiveMethodStore:
    def __init__(self):
        self.data = {}

    async def get(self, key):
        value, expires = self.data.get(key, (None, 0.0))
        return value if expires is None or expires > time.time() else None

    async def set(self, key, value, *, ttl=None):
        self.data[key] = (value, None if ttl is None else time.time() + ttl)

    async def delete(self, key):
        there = await self.get(key) is not None
        self.data.pop(key, None)
        return there

    async def exists(self, key):
        return await self.get(key) is not None

    async def keys(self, pattern):
        fits = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL).fullmatch
        return sorted([key for key in list(self.data) if fits(key) and await self.exists(key)])
