"""The live layer: real HTTP and real engines around the decision code of `dynosim`.

It imports `dynosim`, never the reverse. Everything here is asyncio, one task per external thing;
news of the outside are handed to the pure objects (router, indexer, engine core) synchronously.
"""
