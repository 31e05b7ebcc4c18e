"""Retrieval quality through the edge, over a folder in the BEIR shape, and what the index loses.

`python benchmarks/retrieval.py FOLDER [--env-file data/client.env]` uploads corpus.jsonl as documents of a
new collection, runs every query in each mode, prints nDCG@10 and recall@100 over qrels.tsv, and compares
the collection's own nearest neighbours with exact search over the vectors that it returns.

FOLDER holds corpus.jsonl {_id, title, text}, queries.jsonl {_id, text} and qrels.tsv (query, document,
grade). The metrics are computed here: nDCG with the grade as gain and log2(rank + 1) as discount
(Jarvelin and Kekalainen 2002), which is trec_eval's ndcg_cut and what BEIR reports.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sealcomb_client import Client
from sealcomb_client.values import vector_of

Qrels = dict[str, dict[str, int]]
MODES = ("hybrid", "dense", "lexical")
# The same as hybrid, each document's best passage alone.
ONE_EACH = "hybrid, one"
CUT = 10
RECALL_CUT = 100


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_qrels(path: Path) -> Qrels:
    """Grades by query and document; a header line and extra columns are allowed."""
    qrels: Qrels = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split("\t")
        if len(parts) < 3 or not parts[-1].lstrip("-").isdigit():
            continue
        qrels.setdefault(parts[0], {})[parts[-2]] = int(parts[-1])
    return qrels


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], cut: int = CUT) -> float:
    """Normalised discounted cumulative gain of a ranking; the grade itself is the gain, as BEIR has it."""
    gains = [max(0, grades.get(document, 0)) for document in ranked[:cut]]
    best = sorted((max(0, grade) for grade in grades.values()), reverse=True)[:cut]
    ideal = _discounted(best)
    return _discounted(gains) / ideal if ideal else 0.0


def recall(ranked: Sequence[str], grades: Mapping[str, int], cut: int = RECALL_CUT) -> float:
    """The share of relevant documents (grade above zero) within the first `cut`."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:cut])) / len(relevant) if relevant else 0.0


def _discounted(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def upload(client: Client, collection: str, corpus: Sequence[Mapping[str, str]]) -> float:
    """Uploads every document under its id as name; returns the seconds that it took."""
    client.collections.create(collection, embedder="default")
    started = time.perf_counter()

    def send(entry: Mapping[str, str]) -> None:
        text = f"{entry.get('title', '')}\n\n{entry['text']}".strip()
        if text:
            client.documents.upload(collection, text.encode(), name=entry["_id"], content_type="text/plain")

    with ThreadPoolExecutor(2) as pool:
        for number, _ in enumerate(pool.map(send, corpus), 1):
            if number % 200 == 0:
                print(f"  {number} of {len(corpus)} documents", file=sys.stderr, flush=True)
    return time.perf_counter() - started


def evaluate(
    client: Client, collection: str, queries: Mapping[str, str], qrels: Qrels, mode: str
) -> dict[str, float]:
    """Mean metrics of one mode over the judged queries, and the median time of a search."""
    scores, recalls, times = [], [], []
    for query_id, grades in qrels.items():
        if query_id not in queries or not any(grade > 0 for grade in grades.values()):
            continue
        started = time.perf_counter()
        one = mode == ONE_EACH
        hits = client.search(
            collection,
            queries[query_id],
            top_k=200,
            mode="hybrid" if one else mode,
            one_per_document=one,
        )
        times.append(time.perf_counter() - started)
        # Several passages may be of one document; its best one counts.
        ranked = list(dict.fromkeys(hit.document_name for hit in hits))
        scores.append(ndcg(ranked, grades))
        recalls.append(recall(ranked, grades))
    return {
        "ndcg@10": float(np.mean(scores)),
        "recall@100": float(np.mean(recalls)),
        "median_ms": float(np.median(times)) * 1000,
        "queries": float(len(scores)),
    }


def index_loss(client: Client, collection: str, queries: int = 200) -> float:
    """One minus recall@10 of the collection's index against exact search over its own vectors."""
    ids, rows = [], []
    for point in client.points.list(collection, with_vectors=True, page_size=500):
        ids.append(point.id)
        rows.append(vector_of(point.vector_f32) if point.vector_f32 else list(point.vector))
    matrix = np.asarray(rows, dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    chance = np.random.default_rng(1)
    found = 0
    for row in chance.choice(len(ids), size=min(queries, len(ids)), replace=False):
        probe = matrix[row] + np.float32(chance.normal(scale=0.02, size=matrix.shape[1]))
        exact = np.argsort(-(matrix @ probe), kind="stable")[:CUT]
        hits = client.points.query(
            collection, probe.tobytes(), top_k=CUT, with_text=False, with_metadata=False
        )
        found += len({ids[at] for at in exact} & {hit.id for hit in hits})
    return 1.0 - found / (CUT * min(queries, len(ids)))


def missed(results: Mapping[str, Mapping[str, float]], loss: float, least: Mapping[str, float]) -> list[str]:
    """What is below the bounds that were asked for, in words; NaN is below every bound."""
    found = [
        f"{mode} nDCG@10 {results[mode]['ndcg@10']:.4f}, wanted {bound}"
        for mode, bound in least.items()
        if mode != "loss" and not results[mode]["ndcg@10"] >= bound
    ]
    if "loss" in least and not loss <= least["loss"]:
        found.append(f"index loss {loss:.4f}, wanted at most {least['loss']}")
    return found


def _bound(text: str) -> tuple[str, float]:
    mode, _, value = text.partition("=")
    if mode not in (*MODES, "loss"):
        raise argparse.ArgumentTypeError(f"{mode} is none of {', '.join(MODES)}, loss")
    return mode, float(value)


def main() -> int:
    """Runs the benchmark, prints a table and one JSON line; 1 where a bound that was given is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env-file", type=Path, default=None)
    parser.add_argument(
        "--collection", default="", help="use this collection, already filled, instead of a new one"
    )
    parser.add_argument(
        "--bound",
        action="append",
        default=[],
        type=_bound,
        metavar="MODE=VALUE",
        help="hybrid=0.55, or loss=0.01",
    )
    arguments = parser.parse_args()
    corpus = read_jsonl(arguments.folder / "corpus.jsonl")
    queries = {entry["_id"]: entry["text"] for entry in read_jsonl(arguments.folder / "queries.jsonl")}
    qrels = read_qrels(arguments.folder / "qrels.tsv")
    with Client.from_env(arguments.env_file) as client:
        collection = arguments.collection or f"retrieval {secrets.token_hex(4)}"
        seconds = 0.0 if arguments.collection else upload(client, collection, corpus)
        if seconds:
            print(f"{len(corpus)} documents in {seconds:.0f} s ({len(corpus) / seconds:.1f} a second)")
        results = {mode: evaluate(client, collection, queries, qrels, mode) for mode in (*MODES, ONE_EACH)}
        loss = index_loss(client, collection)
        if not arguments.collection:
            client.collections.delete(collection)
    print(f"{'mode':12}{'nDCG@10':>9}{'recall@100':>12}{'median ms':>11}")
    for mode, result in results.items():
        print(f"{mode:12}{result['ndcg@10']:9.4f}{result['recall@100']:12.4f}{result['median_ms']:11.1f}")
    print(f"recall@10 lost by the index against exact search: {loss:.4f}")
    print(json.dumps({"modes": results, "index_loss": loss, "upload_s": seconds}))
    misses = missed(results, loss, dict(arguments.bound))
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
