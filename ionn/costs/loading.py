"""The costs that a user names: a device, or a file that ionn saved, or a table of published latencies."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

from ionn.arguments import path_of
from ionn.costs.models import SCHEMA, CostModel, Costs, LayerTime, Profile, check_number
from ionn.errors import InputError, did_you_mean, printable
from ionn.strict import parse_json

# What is read of a text in costs.
_TEXT_MAX = 200

# A layer's index, name and ms. Caffe's names may have spaces in them, or be empty.
_LINE = re.compile(r"[0-9]+\s(.*)\s(\S+)")
_DEVICES = Path(__file__).with_name("devices")


def device_names() -> list[str]:
    """The devices that `load_costs` knows by name."""
    return sorted(path.stem for path in _DEVICES.glob("*.json"))


def load_costs(spec: str | Path) -> Costs:
    """The costs that a user asks for: the name of a device; a file that costs were saved in; a text file of lines
    `index name ms`; or `FILE.csv:COLUMN`, a CSV with a `layer` column, that column in ms, and perhaps a `type` column.

    Raises InputError, naming the file and the line or layer, for anything else.
    """
    spec = str(path_of(spec, "costs"))
    known = device_names()
    if spec in known:
        return _from_text(_DEVICES / f"{spec}.json")
    file, _, column = spec.rpartition(":")
    if file.lower().endswith(".csv"):
        return _from_csv(Path(file), column)
    if spec.lower().endswith(".csv"):
        raise InputError(f"{spec}: name the column that holds the times in ms, as in {spec}:COLUMN")
    if os.path.exists(spec):
        return _from_text(Path(spec))
    raise InputError(f"{spec}: no such file or device; devices are {', '.join(known)}{did_you_mean(spec, known)}")


def costs_from_json(document: object, source: str) -> CostModel | Profile:
    """A cost model or profile from what its `to_json` made, checked: it may come from a stranger.

    Raises InputError, naming `source`.
    """
    try:
        match _printable(document):
            case {"kind": "cost-model" | "profile", **rest} if rest.get("schema") != SCHEMA:
                raise InputError("written by another version of ionn; measure again")
            case {"machine": dict(machine)} if not all(isinstance(value, str) for value in machine.values()):
                raise InputError("machine: not an object of texts")
            case {
                "kind": "cost-model",
                "name": str(name),
                "machine": dict(machine),
                "layers": dict(functions),
                "default": dict(default),
                "loads": dict(loads),
            }:
                return CostModel(name, functions, default, loads, machine)
            case {"kind": "profile", "name": str(name), "machine": dict(machine), "layers": list(layers)}:
                return Profile(name, tuple(map(_layer_time, layers)), machine)
            case {"kind": "cost-model" | "profile" as kind}:
                raise InputError(f"not a complete {kind}; measure again")
        raise InputError("not a cost model or profile of ionn")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _printable(value: Any) -> Any:
    """A JSON value, of which every text is fit to be shown: names in costs get into messages and reports."""
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return printable(value[:_TEXT_MAX]) if isinstance(value, str) else value


def _layer_time(document: object) -> LayerTime:
    match document:
        case {"name": str(name), "type": str(type_), "ms": ms, "load_ms": load_ms}:
            return LayerTime(name, type_, ms, load_ms)
    raise InputError("a layer without name, type, ms and load_ms")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the costs: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a file of costs: it is not UTF-8 text") from error


def _from_text(path: Path) -> CostModel | Profile:
    text = _read(path)
    if text.lstrip().startswith("{"):
        try:
            document = parse_json(text)
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
    rows = csv.DictReader(_read(path).splitlines())
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
