"""An event loop that was made before main(): what its forked workers would share, for asyncio and what is like it."""

from __future__ import annotations

from tests.rolling.programs import Rolling

BEFORE_MAIN = """
import asyncio, {module}, hotrestart

@hotrestart.restartable(workers=2, preload={preload})
async def main():
    async with hotrestart.worker_loop() as loop:
        report(ready=True)
        await loop.stopping()

events = {module}.new_event_loop()
events.run_until_complete(main())
"""


def check_shared_loop_refused(program: Rolling, module: str) -> None:
    program.deploy(BEFORE_MAIN.format(module=module, preload=True))
    program.start()
    assert program.wait_exit() == 1
    assert "workers cannot share an event loop: call main() before, as asyncio.run(main())" in program.log()
    assert program.reports() == []


def check_loop_of_its_own(program: Rolling, module: str) -> None:
    program.deploy(BEFORE_MAIN.format(module=module, preload=False))
    program.start()
    program.wait_report(ready=True, count=2)
    assert program.stop() == 0
