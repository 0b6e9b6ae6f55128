"""Calibrates this host, alone or with the ranks of a launch, and says what was found."""

import json
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from accel_train.config.schema import RunConfig
from accel_train.engine.build import build_engine
from accel_train.errors import UserError
from accel_train.tools.calibration.measure import measure_collectives, measure_rates
from accel_train.tools.calibration.record import (
    Calibration,
    Curve,
    rates_key,
    read_calibration,
    this_machine,
    write_calibration,
)


def calibrate(config: RunConfig, *, as_json: bool = False) -> Calibration:
    """Measures with the threads of `config` and as launched, adds it to what is known of this machine, and prints it."""
    engine = build_engine(config, for_evaluation=True)
    try:
        key = rates_key(engine.device.type, engine.world_size)
        rates = measure_rates(engine.device)
        collectives = measure_collectives(engine) if engine.world_size > 1 else {}
        engine.exchange([0])
        if not engine.is_main:
            return Calibration(this_machine())
        known = _known()
        found = replace(
            known,
            rates=known.rates | {key: rates},
            collectives=known.collectives | ({str(engine.world_size): collectives} if collectives else {}),
        )
        path = write_calibration(found)
        if as_json:
            print(
                json.dumps(
                    {"path": str(path), "key": key, "curves": rates.curves, "collectives": collectives}, indent=1
                )
            )
        else:
            _print(key, rates.curves, rates.seconds_per_operation, collectives, str(path))
        return found
    finally:
        engine.close()


def _known() -> Calibration:
    """What was measured of this machine before; nothing, where it was another."""
    try:
        return read_calibration()
    except UserError:
        return Calibration(this_machine())


def _print(key: str, curves: dict[str, Curve], overhead: float, collectives: dict[str, Curve], path: str) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(key)
    table.add_column("best rate", justify="right")
    table.add_column("smallest operation", justify="right")
    for name, curve in [*curves.items(), *collectives.items()]:
        rate = max(size / seconds for size, seconds in curve)
        unit = "GFLOP/s" if "/" in name else "GB/s"
        table.add_row(name, f"{rate / 1e9:,.1f} {unit}", f"{curve[0][1] * 1e6:,.1f} µs")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{overhead * 1e6:.1f} µs of Python and autograd around each operation. Kept in {path}.")
