"""Snapshots of before there were parts: the whole state of a collection as one sealed object.

They are only read; the next snapshot of a collection that has one is written in parts. The plaintext begins
as a manifest does, with the magic "SCSNAP01" (manifest.py: kind, dimension, metric, lsn, chain, next
number), then:

    text analyser of the lexical index
    then sections: u8 tag, u64 length, content; in this order
         1 operations that make the state from nothing; any number of sections
         2 lengths of the passages (u32 each)
         3 postings: (text term, bytes postings) repeated; any number
         4 graph of the vectors (shape.py), if there is one
         0 end, empty

Sealed as Identity(account, collection, "snapshot", version=lsn). No byte of it is parsed before the
whole object was authenticated. The number is 0 where points had no versions yet.
"""

from __future__ import annotations

import numpy as np

from services.vectorstore.columns import Indexed
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import load_graph
from services.vectorstore.lexical import ANALYSER
from services.vectorstore.manifest import Moment, read_prefix
from services.vectorstore.operations import PutDocument, decode
from services.vectorstore.points import PointState
from services.vectorstore.reader import DataDamaged, Reader
from services.vectorstore.segments import new_state, read_postings
from services.vectorstore.shape import BadShape
from services.vectorstore.state import State

MAGIC = b"SCSNAP01"
_END, _OPERATIONS, _LENGTHS, _POSTINGS, _GRAPH = 0, 1, 2, 3, 4


def load(plaintext: bytes | bytearray, indexed: Indexed = None) -> tuple[Moment, State]:
    """The state in a whole snapshot. Raises DataDamaged."""
    reader = Reader(plaintext)
    moment = read_prefix(MAGIC, reader)
    dimension, number = moment.dimension, moment.next_number
    same_analyser = reader.text() == ANALYSER
    state = new_state(moment.text, dimension, moment.metric, indexed)
    lengths = np.empty(0, np.uint32)
    postings: list[memoryview] = []
    graph: memoryview | None = None
    while True:
        tag, size = reader.u8(), reader.u64()
        content = reader.take(size)
        if tag == _OPERATIONS:
            _restore(state, content, dimension, same_analyser)
        elif tag == _LENGTHS:
            lengths = np.frombuffer(content, "<u4").astype(np.uint32)
        elif tag == _POSTINGS:
            postings.append(content)
        elif tag == _GRAPH:
            graph = content
        elif tag == _END and reader.at_end:
            break
        else:
            raise DataDamaged
    if isinstance(state, DocumentState):
        state.next_sequence = number
        if same_analyser:
            state.lexical.load(lengths, read_postings(postings))
    elif isinstance(state, PointState):
        state.next_version = max(state.next_version, number)
    if graph is not None:
        try:
            loaded = load_graph(graph, state.index)
        except BadShape:
            raise DataDamaged from None
        if loaded is not None:
            state.index.adopt_graph(loaded)
    return moment, state


def _restore(state: State, content: memoryview, dimension: int, same_analyser: bool) -> None:
    for operation in decode(content, dimension):
        if isinstance(state, DocumentState) and isinstance(operation, PutDocument) and same_analyser:
            state.restore(operation)
        else:
            state.apply(operation)
