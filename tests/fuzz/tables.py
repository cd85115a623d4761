"""Damaged tables of features: shards cut, missing or of another kind, and what says what they were made from."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import ground as grounds
from .damage import damage_bytes, damage_mapping
from .judge import Case, by_verb, chance_of


COUNT = 50
EXTRACT = "extract_features run --dataset data --num_workers 0 --split test --output_dir table --device cpu".split()
USES = {
    "search": "search table image.png --k 2 --cache_dir cache --device cpu".split(),
    "resume": [*EXTRACT, "--rows_per_shard", "4", "--cache_dir", "cache"],
    "index": [*EXTRACT, "--rows_per_shard", "4", "--index", "--cache_dir", "cache"],
}
PLANS = ("bytes", "missing", "column", "type", "length", "not finite", "rows", "footer", "identity", "index", "empty")


def case(seed: int, number: int, ground: Path) -> Case:
    chance = chance_of("tables", seed, number)
    use, plan = chance.choice(sorted(USES)), PLANS[number % len(PLANS)]
    made = grounds.build(ground)

    def run() -> str | None:
        with grounds.copied(made, ground / f"table-{number}", "run", "data", "table", "image.png") as folder:
            damage_table(folder / "table", plan, chance)
            verb, *arguments = USES[use]
            refusal = by_verb(verb, *arguments)
            # Shards that are there are not read again when the rest is made.
            if refusal is None and plan != "not finite" and (plan, use) != ("bytes", "resume"):
                grounds.assert_finite(folder)
            assert refusal is not None or (plan, use) != ("not finite", "index"), "indexed what is no number"
            return refusal

    return Case(f"{plan}, then {use}", run, ())


def damage_table(folder: Path, plan: str, chance: random.Random) -> None:
    shard = chance.choice(sorted((folder / "data").glob("*.parquet")))
    if plan == "bytes":
        shard.write_bytes(damage_bytes(shard.read_bytes(), chance)[1])
    elif plan == "missing":
        shard.unlink()
    elif plan == "empty":
        shutil.rmtree(folder / chance.choice(("data", "index")))
    elif plan == "identity":
        path = folder / "extraction.json"
        text = json.dumps(damage_mapping(json.loads(path.read_text()), chance)[1])
        path.write_text(text if chance.random() < 0.7 else text[: len(text) // 2])
    elif plan == "index":
        path = next((folder / "index").glob("*.faiss"))
        path.write_bytes(damage_bytes(path.read_bytes(), chance)[1])
    else:
        table = pq.read_table(shard)
        write(shard, changed(table, plan, chance), keep=plan != "footer")


def changed(table: pa.Table, plan: str, chance: random.Random) -> pa.Table:
    if plan == "column":
        name = chance.choice(table.column_names)
        return table.drop_columns([name]) if chance.random() < 0.5 else table.rename_columns({name: name + "s"})
    if plan == "rows":
        return table.slice(0, 2) if chance.random() < 0.5 else pa.concat_tables([table, table])
    if plan == "footer":
        return table
    at = table.column_names.index("features")
    values = np.array(table.column(at).to_pylist(), np.float32)
    if plan == "type":
        column = chance.choice((pa.array(["x"] * len(table)), pa.array(range(len(table))), pa.nulls(len(table))))
    elif plan == "length":
        width = chance.choice((1, values.shape[1] - 1, values.shape[1] + 1))
        wide = np.resize(values, (len(table), width)).reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(wide), width)
    else:
        values[chance.randrange(len(values)), 0] = chance.choice((np.nan, np.inf, -np.inf))
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return table.set_column(at, "features", column)


def write(shard: Path, table: pa.Table, keep: bool) -> None:
    """Write a shard again, with its footer or without."""
    footer = pq.read_metadata(shard).metadata or {}
    with pq.ParquetWriter(shard, table.schema) as writer:
        writer.write_table(table)
        if keep:
            writer.add_key_value_metadata({key: value for key, value in footer.items() if key == b"ldae"})
