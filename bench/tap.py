"""A tap behind the link: forwards TCP as fast as it comes and writes down how many bytes had passed when.

python bench/tap.py HOST:PORT OUTPUT    prints where it listens; OUTPUT gets lines "SECONDS BYTES_UP", a monotonic clock
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TextIO

from ionn.address import parse_address

READ_BYTES = 64 * 1024


class Tap:
    def __init__(self, host: str, port: int, output: TextIO) -> None:
        self.target = (host, port)
        self.output = output
        self.bytes_up = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self.target)
        await asyncio.gather(self.forward(reader, server_writer, True), self.forward(server_reader, writer, False))

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                if up:
                    self.bytes_up += len(data)
                    self.output.write(f"{time.monotonic():.6f} {self.bytes_up}\n")
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # one end is gone; the other is told below
        finally:
            writer.close()


async def main() -> None:
    host, port = parse_address(sys.argv[1])
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with open(sys.argv[2], "w", encoding="ascii") as output:
        server = await asyncio.start_server(Tap(host, port, output).connection, "127.0.0.1", 0)
        print(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
