"""Loading the costs that a user names: a bundled device, a file that ionn saved, or a table of published latencies."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import msgspec

from ionn.arguments import decimal_of, path_of
from ionn.costs.models import SCHEMA, CostModel, Costs, LayerTime, Profile, check_number
from ionn.errors import InputError, did_you_mean, printable
from ionn.files import read_text
from ionn.paper import CLIENT
from ionn.schema import read_json

# Texts in files of costs are cut to so many characters.
_TEXT_MAX = 200

# A layer's index, name and time in ms. Names in Caffe may contain spaces, or be empty.
_LINE = re.compile(r"[0-9]+\s(.*)\s(\S+)")
_DEVICES = Path(__file__).with_name("devices")

# The range of N in `N*COSTS`: from a thousandth as fast to a thousand times as fast.
_TIMES_AS_FAST = re.compile(r"([^*]+)\*(.+)", re.DOTALL)
SPEEDUP_MIN, SPEEDUP_MAX = 1e-3, 1e3


def device_names() -> list[str]:
    """The bundled devices, which `load_costs` knows by name."""
    return sorted(path.stem for path in _DEVICES.glob("*.json"))


def load_costs(spec: str | Path, folder: Path | None = None) -> CostModel | Profile:
    """Load the costs of a device. `spec` is one of these:

    - the name of a bundled device, such as "odroid-xu4" or "gtx1080ti";
    - a file that `ionn profile`, `ionn calibrate`, `Profile.save` or `CostModel.save` wrote;
    - a text file with a line `index name ms` for each layer;
    - `FILE.csv:COLUMN`: a CSV file with the columns `layer`, COLUMN (in ms) and perhaps `type`;
    - `N*COSTS`: one of the above, N times as fast, with N from SPEEDUP_MIN (0.001) to SPEEDUP_MAX (1000). A file with
      this name takes precedence.

    Files are relative to `folder`, if given. Raises InputError, which names the file and the line or layer, for
    anything else.
    """
    spec = str(path_of(spec, "costs"))
    if (match := _TIMES_AS_FAST.fullmatch(spec)) is None or _is_of_file(spec, folder):
        return _load(spec, folder)
    factor = decimal_of(match[1])
    if not SPEEDUP_MIN <= factor <= SPEEDUP_MAX:
        many = f"a number from {SPEEDUP_MIN:g} to {SPEEDUP_MAX:g}"
        raise InputError(f"{spec}: in N*COSTS, N is how many times as fast; give {many}, as in 0.5*{CLIENT}")
    if _TIMES_AS_FAST.fullmatch(match[2]) and not _is_of_file(match[2], folder):
        raise InputError(f"{spec[:60]}: give one number in N*COSTS, as in 0.5*{CLIENT}")
    costs = _load(match[2], folder)
    return costs if factor == 1 else costs.times_as_fast(factor)


def split_times(label: str) -> tuple[float, str]:
    """Split a label that `costs_label` made: `N*COSTS` into (N, COSTS), any other label into (1, the label)."""
    match = _TIMES_AS_FAST.fullmatch(label)
    factor = decimal_of(match[1]) if match else math.nan
    return (factor, match[2]) if match and SPEEDUP_MIN <= factor <= SPEEDUP_MAX else (1.0, label)


def _is_of_file(spec: str, folder: Path | None) -> bool:
    """Tell whether `spec` names a file that exists, or a column of one."""
    file = spec.rpartition(":")[0] or spec
    return any(os.path.exists(each if folder is None else folder / each) for each in (spec, file))


def _load(spec: str, folder: Path | None) -> CostModel | Profile:
    known = device_names()
    if spec in known:
        return _device(spec)
    if folder is not None:
        spec = str(folder / spec)
    file, _, column = spec.rpartition(":")
    if file.lower().endswith(".csv"):
        return _from_csv(Path(file), column)
    if spec.lower().endswith(".csv"):
        raise InputError(f"{spec}: name the column that holds the times in ms, as in {spec}:COLUMN")
    if os.path.exists(spec):
        return _from_text(Path(spec))
    raise InputError(f"{spec}: no such file or device; devices are {', '.join(known)}{did_you_mean(spec, known)}")


def costs_of(given: str | Path | Costs, what: str) -> Costs:
    """Return costs as they are, and load anything else with `load_costs`. Raises InputError, which names the argument
    `what`, if that is not possible."""
    if isinstance(given, Costs) and not isinstance(given, type):
        return given
    return load_costs(path_of(given, what))


def costs_label(costs: Costs) -> str:
    """Return the name of costs in traces: that of the bundled device that has these costs, or else their own name, in
    which `*` becomes `_`, with a digest of their numbers. Costs that are N times as fast as others get `N*` and the
    name of those."""
    base: Costs | None = getattr(costs, "base", None)
    if base is not None:
        return f"{costs.name.partition('*')[0]}*{costs_label(base)}"
    factor, device = split_times(costs.name)
    if device in device_names():
        known = _device(device)
        if costs in (known, known.times_as_fast(factor)):
            return costs.name
    digest = hashlib.sha256(json.dumps(costs.to_json(), sort_keys=True).encode())
    return f"{printable(costs.name).replace('*', '_')} ({digest.hexdigest()[:8]})"


def _device(name: str) -> CostModel | Profile:
    return _from_text(_DEVICES / f"{name}.json")


class _CostModelDocument(msgspec.Struct, tag_field="kind", tag="cost-model"):
    """What `CostModel.to_json` writes, except the schema. Files of earlier versions lack the speed of coding."""

    name: str
    machine: dict[str, str]
    layers: dict[str, dict[str, float]]
    default: dict[str, float]
    loads: dict[str, dict[str, float]]
    encode_ms_per_mb: float | None = None
    decode_ms_per_mb: float | None = None

    def costs(self) -> CostModel:
        layers, loads = (
            {_shown(type_): _named(coefficients) for type_, coefficients in functions.items()}
            for functions in (self.layers, self.loads)
        )
        return CostModel(
            _shown(self.name), layers, _named(self.default), loads, _machine(self.machine), self.encode_ms_per_mb,
            self.decode_ms_per_mb,
        )  # fmt: skip


class _ProfileDocument(msgspec.Struct, tag_field="kind", tag="profile"):
    """What `Profile.to_json` writes, except the schema. Files of earlier versions lack the speed of coding."""

    name: str
    machine: dict[str, str]
    layers: list[LayerTime]
    encode_ms_per_mb: float | None = None
    decode_ms_per_mb: float | None = None

    def costs(self) -> Profile:
        layers = (replace(layer, name=_shown(layer.name), type=_shown(layer.type)) for layer in self.layers)
        speeds = self.encode_ms_per_mb, self.decode_ms_per_mb
        return Profile(_shown(self.name), tuple(layers), _machine(self.machine), *speeds)


class _Version(msgspec.Struct):
    kind: str = ""
    schema: int = 0


def costs_from_json(document: object, source: str) -> CostModel | Profile:
    """A cost model or profile from what its `to_json` returned. Everything is checked, as a stranger may have sent it.

    Raises InputError, which names `source`.
    """
    try:
        version = msgspec.convert(document, _Version)
        if version.kind not in ("cost-model", "profile"):
            raise InputError("not a cost model or profile of ionn")
        if version.schema != SCHEMA:
            raise InputError("written by another version of ionn; measure again")
        return msgspec.convert(document, _CostModelDocument | _ProfileDocument).costs()
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: not a cost model or profile of ionn: {error}; measure again") from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _shown(text: str) -> str:
    """A text made safe for messages and reports, where names in costs are shown."""
    return printable(text[:_TEXT_MAX])


def _named(coefficients: dict[str, float]) -> dict[str, float]:
    return {_shown(feature): value for feature, value in coefficients.items()}


def _machine(machine: dict[str, str]) -> dict[str, str]:
    return {_shown(what): _shown(text) for what, text in machine.items()}


def _from_text(path: Path) -> CostModel | Profile:
    text = read_text(path, "the costs")
    if text.lstrip().startswith("{"):
        try:
            document = read_json(text)
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from error
        return costs_from_json(document, str(path))
    layers = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{path}:{number}: not a line of 'index name ms': {line.strip()[:60]!r}")
        name, ms = match[1].strip(), match[2]
        layers.append(LayerTime(name, "", _parse_ms(ms, f"{path}:{number}: the time of layer {name!r}")))
    return Profile(path.name, tuple(layers))


def _from_csv(path: Path, column: str) -> Profile:
    rows = csv.DictReader(read_text(path, "the costs").splitlines())
    layers = []
    try:
        for needed in ("layer", column):
            if needed not in (rows.fieldnames or ()):
                raise InputError(f"{path}: no column {needed!r}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            name = row["layer"] or ""
            where = f"{path}:{rows.line_num}: the {column} of layer {name!r}"
            layers.append(LayerTime(name, row.get("type") or "", _parse_ms(row[column], where)))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a CSV: {error}") from error
    return Profile(f"{path.name}:{column}", tuple(layers))


def _parse_ms(text: str | None, where: str) -> float:
    try:
        ms = float(text or "")
    except ValueError:
        raise InputError(f"{where} is {text or 'empty':.100}; it must be a number of ms") from None
    check_number(ms, where)
    return ms
