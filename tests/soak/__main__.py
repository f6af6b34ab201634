# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m soak``: an hour of work through tunnels, a fault in each minute, and a verdict.

The environment says how:

- ``SOAK_MINUTES`` (60); a whole hour writes ``benchmarks/results/soak.json`` and ``soak.txt``, less only below
  ``.cache/soak``; ``SOAK_RESULTS`` is another folder;
- ``SOAK_FAULTS`` (all), names with commas between them;
- ``SOAK_SEED`` (15), for their order;
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
from .environment import Field, remove_remains
from .faults import FAULTS, Fault, Rotation
from .load import running
from .record import Record
from .watch import Watch

WHOLE_MINUTES = 60.0
SLOT = float(os.environ.get("SOAK_SLOT", "60"))


def main() -> int:
    """Run it. Returns 0 where all was as it must be."""
    os.environ.update({name: "" for name in os.environ if name.lower().endswith("_proxy")})
    if why_impossible():
        sys.exit(f"the soak needs a network namespace and file systems of its own: {why_impossible()}")
    minutes = float(os.environ.get("SOAK_MINUTES", WHOLE_MINUTES))
    seed = int(os.environ.get("SOAK_SEED", "15"))
    chosen = _chosen(os.environ.get("SOAK_FAULTS", ""))
    # Figures of a soak that is not whole are not those of the product.
    otherwise = REPOSITORY / ("benchmarks/results" if minutes >= WHOLE_MINUTES else ".cache/soak")
    results = Path(os.environ.get("SOAK_RESULTS", otherwise))
    # What SIGTERM ends is removed as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    remove_remains()
    record = Record()
    content: dict[str, Any] = {"minutes": minutes, "seed": seed, "machine": report.machine()}
    with Field(record, int(os.environ.get("SOAK_DEVICES", "20"))) as field:
        print(f"{len(field.things)} devices wait for tunnels", flush=True)
        watch = Watch(field, SLOT * len(chosen))
        for thing in field.things:
            try:
                field.reach(thing)
            except hub.HubError as error:
                record.note(f"{thing} is not reached at first: {error}")
        watch.note_start()
        record.began = time.time()
        with watch.running(), running(field) as (plays, terminals, pages):
            _break(field, Rotation(chosen, seed), minutes)
        print("the load has ended; looking at what is left", flush=True)
        watch.check_end()
        figures = {
            "minutes": f"{minutes:g}",
            "devices": len(field.things),
            "plays": plays.runs,
            "seconds for a play": f"{statistics.median(plays.seconds or [0]):.1f}",
            "terminal sessions": sum(terminal.sessions for terminal in terminals),
            "milliseconds for a page": f"{1000 * statistics.median(pages.seconds or [0]):.0f}",
        }
        content["watch"] = watch.as_json()
        if record.violations():
            watch.save_logs(REPOSITORY / ".cache" / "soak" / "logs")
    content |= {"load": figures, "violations": record.violations(), **record.as_json()}
    words = report.text(record, watch.samples, figures)
    report.save(results, content, words)
    print(f"\n{words}\nwritten to {results}", flush=True)
    return 1 if record.violations() else 0


def _chosen(names: str) -> tuple[type[Fault], ...]:
    known = {fault.name: fault for fault in FAULTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"there is no fault {', '.join(unknown)}: choose from {', '.join(known)}")
    return tuple(known[name] for name in wanted)


def _break(field: Field, rotation: Rotation, minutes: float) -> None:
    """Have one fault in each minute; none in the first, nor so late that its recovery would not be seen."""
    end = field.record.began + minutes * 60
    apart: list[threading.Thread] = []
    next_slot = field.record.began + SLOT
    for kind in rotation:
        if next_slot + SLOT > end:
            break
        time.sleep(max(0.0, next_slot - time.time()))
        fault = kind(field)
        print(f"{field.record.at(time.time())} {fault.name}", flush=True)
        if fault.apart:
            apart.append(threading.Thread(target=_run, args=(field, fault), daemon=True))
            apart[-1].start()
        else:
            _run(field, fault)
        next_slot += SLOT * max(1, -(-(time.time() - next_slot) // SLOT))
    for thread in apart:
        thread.join()
    time.sleep(max(0.0, end - time.time()))


def _run(field: Field, fault: Fault) -> None:
    try:
        window = fault.run()
    except Exception as error:
        field.record.note(f"{fault.name}: {type(error).__name__}: {error}")
        return
    took = window.recovered - window.undone
    print(f"{field.record.at(time.time())} {fault.name}: {window.failure or f'well after {took:.1f} s'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
