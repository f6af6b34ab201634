# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m soak``: an hour of work through tunnels, one fault a minute, and a verdict.

Environment variables, with their defaults:

- ``SOAK_MINUTES`` (60). A full hour writes ``soak.json`` and ``soak.txt`` to ``benchmarks/results``, a shorter run to
  ``.cache/soak``; ``SOAK_RESULTS`` names another folder;
- ``SOAK_FAULTS`` (all), names separated by commas;
- ``SOAK_SEED`` (15), which determines the order of the faults;
- ``SOAK_SLOT`` (60), the seconds from one fault to the next;
- ``SOAK_DEVICES`` (20).
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from peers.namespace import why_impossible
from peers.process import REPOSITORY
from tunnelproxy.hub import client as hub

from . import report
from .faults import FAULTS, Fault, Rotation
from .load import running
from .record import Record
from .testbed import Testbed, remove_leftovers
from .watch import Watch

WHOLE_MINUTES = 60.0
SLOT = float(os.environ.get("SOAK_SLOT", "60"))


def main() -> int:
    """Run the soak. Returns 0 if there was no violation."""
    os.environ.update({name: "" for name in os.environ if name.lower().endswith("_proxy")})
    if why_impossible():
        sys.exit(f"the soak requires a network namespace and mounts: {why_impossible()}")
    minutes = float(os.environ.get("SOAK_MINUTES", WHOLE_MINUTES))
    seed = int(os.environ.get("SOAK_SEED", "15"))
    chosen = _chosen(os.environ.get("SOAK_FAULTS", ""))
    # The results of a shorter run do not describe the product.
    default = REPOSITORY / ("benchmarks/results" if minutes >= WHOLE_MINUTES else ".cache/soak")
    results = Path(os.environ.get("SOAK_RESULTS", default))
    # Clean up after SIGTERM as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    remove_leftovers()
    record = Record()
    content: dict[str, Any] = {"minutes": minutes, "seed": seed, "machine": report.machine()}
    with Testbed(record, int(os.environ.get("SOAK_DEVICES", "20"))) as testbed:
        print(f"{len(testbed.things)} devices are waiting for tunnels", flush=True)
        watch = Watch(testbed, SLOT * len(chosen))
        for thing in testbed.things:
            try:
                testbed.reach(thing)
            except hub.HubError as error:
                record.note(f"cannot reach {thing} before the start: {error}")
        watch.note_start()
        record.began = time.time()
        with watch.running(), running(testbed) as (plays, terminals, pages):
            _inject_faults(testbed, Rotation(chosen, seed), minutes)
        print("the load has ended; checking for leftovers", flush=True)
        watch.check_end()
        measurements = {
            "minutes": f"{minutes:g}",
            "devices": len(testbed.things),
            "plays": plays.runs,
            "seconds for a play": f"{statistics.median(plays.seconds or [0]):.1f}",
            "terminal sessions": sum(terminal.sessions for terminal in terminals),
            "milliseconds for a page": f"{1000 * statistics.median(pages.seconds or [0]):.0f}",
        }
        content["watch"] = watch.as_json()
        if record.violations():
            watch.save_logs(REPOSITORY / ".cache" / "soak" / "logs")
    content |= {"load": measurements, "violations": record.violations(), **record.as_json()}
    text = report.text(record, watch.samples, measurements)
    report.save(results, content, text)
    print(f"\n{text}\nwritten to {results}", flush=True)
    return 1 if record.violations() else 0


def _chosen(names: str) -> tuple[type[Fault], ...]:
    known = {fault.name: fault for fault in FAULTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"unknown fault {', '.join(unknown)}: choose from {', '.join(known)}")
    return tuple(known[name] for name in wanted)


def _inject_faults(testbed: Testbed, rotation: Rotation, minutes: float) -> None:
    """Inject one fault per slot, except in the first, and not so late that its recovery could not be observed."""
    end = testbed.record.began + minutes * 60
    in_background: list[threading.Thread] = []
    next_slot = testbed.record.began + SLOT
    for kind in rotation:
        if next_slot + SLOT > end:
            break
        time.sleep(max(0.0, next_slot - time.time()))
        fault = kind(testbed)
        print(f"{testbed.record.at(time.time())} {fault.name}", flush=True)
        if fault.in_background:
            in_background.append(threading.Thread(target=_run, args=(testbed, fault), daemon=True))
            in_background[-1].start()
        else:
            _run(testbed, fault)
        next_slot += SLOT * max(1, -(-(time.time() - next_slot) // SLOT))
    for thread in in_background:
        thread.join()
    time.sleep(max(0.0, end - time.time()))


def _run(testbed: Testbed, fault: Fault) -> None:
    try:
        window = fault.run()
    except Exception as error:
        testbed.record.note(f"{fault.name}: {type(error).__name__}: {error}")
        return
    took = window.recovered - window.removed
    print(
        f"{testbed.record.at(time.time())} {fault.name}: {window.violation or f'recovered after {took:.1f} s'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
