"""Snapshots: the state of a collection at one lsn as a sealed manifest and the sealed parts that it names.

A snapshot writes what is new since the one before, what has to be without its deleted items, and the
manifest; all other parts stay. An object is noted in SQL before it is written. Then the head moves to the
manifest's digest, so to all of its parts, and the log is trimmed, in one transaction; only after that old
objects go. A crash in between leaves the old snapshot or the new one, and objects that the next one removes.

No plaintext of it ever touches a disk.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from services.common.errors import SealcombError, Unavailable
from services.common.objects import ObjectStore
from services.common.sealing import DataKey
from services.vectorstore.columns import Indexed
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Graph, load_graph
from services.vectorstore.layout import Layout, Segment, Stretch, plan
from services.vectorstore.log import LostPlace, Scope
from services.vectorstore.manifest import Listed, Manifest, Moment, encode
from services.vectorstore.operations import PutDocument
from services.vectorstore.parts import (
    GRAPH,
    SEGMENT,
    Part,
    SnapshotBroken,
    new_name,
    object_key,
    put_object,
    put_part,
    read_part,
    seal_object,
)
from services.vectorstore.points import PointState
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import PartRow, SnapshotRow
from services.vectorstore.segments import adopt_graph, dump_graph, dump_segment, load_segment, new_state
from services.vectorstore.state import Capture, State
from services.vectorstore.store import Store

# Segments of other keys that one snapshot seals anew: what a reseal does before it may stop.
RESEAL_SEGMENTS = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What a snapshot is for, beside what is new. `erase`: no deleted item may stay in any part.

    `reseal`: parts under other keys are sealed anew, some of them. `has_graph`: the stored graph is the
    present one.
    """

    erase: bool = False
    reseal: bool = False
    has_graph: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A snapshot whose objects are there, and which the head may name."""

    layout: Layout
    digest: bytes


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes one snapshot; blocks, so in a thread."""

    store: Store
    objects: ObjectStore
    key: DataKey
    scope: Scope
    epoch: int
    stop: threading.Event
    # Whose collection it is as long as it is nobody's: of one that is not there yet.
    maker: str = ""
    _noted: list[str] = field(default_factory=list)

    def write(self, moment: Moment, capture: Capture, stored: Layout, wish: Wish) -> Written:
        """Writes the parts that a capture needs beside those that are stored, and the manifest."""
        try:
            return self._write(moment, capture, stored, wish)
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Deletes what was written: no head names it.

        Not all of it need be noted still: whoever takes over a collection removes what it does not need, and
        a writer that was paused until then may have gone on.
        """
        with contextlib.suppress(SealcombError):
            for key in self._noted:
                self.objects.delete(key)

    def _write(self, moment: Moment, capture: Capture, stored: Layout, wish: Wish) -> Written:
        layout = stored.covering(len(capture.live_items))
        stretches = plan(
            layout, capture.live_items, capture.sizes, _Unwanted(wish, self.key.id, RESEAL_SEGMENTS)
        )
        names = [new_name(SEGMENT) if stretch.segment is None else "" for stretch in stretches]
        graph = self._kept_graph(capture, layout, wish)
        graph_name = new_name(GRAPH) if capture.graph is not None and graph is None else ""
        self._note(moment, [name for name in (*names, graph_name) if name])
        listed, segments = [], []
        for stretch, name in zip(stretches, names, strict=True):
            segment = stretch.segment or self._put(capture, stretch, layout, name, moment.dimension)
            segments.append(segment)
            listed.append(Listed(segment.part, len(segment.ordinals), stretch.gone(layout)))
        if graph_name and capture.graph is not None:
            self._go_on()
            # Where none of its rows lives the part is empty, and no manifest names it.
            content = list(dump_graph(capture, capture.graph, layout.ordinals))
            graph = put_part(self.objects, self.key, self.scope, graph_name, content) if content else None
        manifest = encode(Manifest(moment, layout.next_ordinal, listed, graph))
        sealed = seal_object(self.key, self.scope.identity("snapshot", moment.lsn), [manifest])
        self._go_on()
        digest, _size = put_object(self.objects, self._manifest_key(moment.lsn), sealed)
        self._go_on()
        gone = sum(int(np.count_nonzero(each.gone)) for each in listed if each.gone is not None)
        return Written(replace(layout, segments=tuple(segments), graph=graph, gone=gone), digest)

    def _kept_graph(self, capture: Capture, layout: Layout, wish: Wish) -> Part | None:
        part = layout.graph if wish.has_graph and capture.graph is not None else None
        return None if part is not None and wish.reseal and part.key_id != self.key.id else part

    def _note(self, moment: Moment, names: list[str]) -> None:
        rows = [PartRow(name, object_key(self.scope, name), self.key.id) for name in names]
        row = SnapshotRow(moment.lsn, self._manifest_key(moment.lsn), self.key.id)
        if not self.store.plan_snapshot(self.scope.collection, self.epoch, row, rows):
            raise LostPlace
        self._noted.extend([row.object_key, *(part.object_key for part in rows)])

    def _put(self, capture: Capture, stretch: Stretch, layout: Layout, name: str, dimension: int) -> Segment:
        self._go_on()
        ordinals = layout.ordinals[stretch.items]
        content = dump_segment(capture, stretch.items, ordinals, dimension)
        return Segment(put_part(self.objects, self.key, self.scope, name, content), ordinals)

    def _manifest_key(self, lsn: int) -> str:
        # No two holders, of whom one may be late, ever write the same object.
        writer = self.maker or (str(self.epoch) if self.epoch > 1 else "")
        return object_key(self.scope, f"snap-{lsn:020d}" + (f"-{writer}" if writer else ""))

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Unavailable("the collection was just closed; try again", retry_after_s=0.1)


@dataclass(slots=True)
class _Unwanted:
    """Says of a segment whether it must be written again."""

    wish: Wish
    key_id: str
    left: int

    def __call__(self, segment: Segment, gone: int) -> bool:
        if self.wish.reseal and segment.part.key_id != self.key_id and self.left:
            self.left -= 1
            return True
        return self.wish.erase and gone > 0


def read_parts(
    objects: ObjectStore, keys: Mapping[str, DataKey], scope: Scope, manifest: Manifest, indexed: Indexed
) -> tuple[State, Layout]:
    """The state that a manifest's parts make; one part is in memory at a time. Raises DataLoss."""
    moment = manifest.moment
    state = new_state(moment.text, moment.dimension, moment.metric, indexed)
    items = sum(listed.items for listed in manifest.segments)
    # With room for what is written next; room that nobody has used takes no memory.
    state.index.expect(items + items // 8)
    segments: list[Segment] = []
    living = [np.empty(0, np.uint64)]
    for listed in manifest.segments:
        ordinals = load_segment(read_part(objects, keys, scope, listed.part), state, listed.gone)
        before = int(segments[-1].ordinals[-1]) if segments else -1
        if len(ordinals) != listed.items or not before < int(ordinals[0]):
            raise DataDamaged
        segments.append(Segment(listed.part, ordinals))
        living.append(ordinals if listed.gone is None else ordinals[~listed.gone])
    ordinals = np.concatenate(living)
    if segments and int(segments[-1].ordinals[-1]) >= manifest.next_ordinal:
        raise DataDamaged
    if manifest.graph is not None:
        adopt_graph(read_part(objects, keys, scope, manifest.graph), state, ordinals)
    set_next_number(state, moment.next_number)
    gone = items - len(ordinals)
    return state, Layout(tuple(segments), manifest.graph, ordinals, manifest.next_ordinal, gone)


def copy(moment: Moment, capture: Capture, indexed: Indexed) -> State:
    """A state with what lives in a capture alone; in a thread."""
    state = new_state(moment.text, moment.dimension, moment.metric, indexed)
    items = capture.live_items.nonzero()[0]
    for operation in capture.operations(items):
        if isinstance(state, DocumentState) and isinstance(operation, PutDocument):
            state.restore(operation)
        else:
            state.apply(operation)
    if isinstance(state, DocumentState):
        state.lexical.load(np.frombuffer(capture.lengths(items), "<u4"), capture.postings(items))
    packed = b"" if capture.graph is None else capture.pack(capture.graph)
    graph: Graph | None = load_graph(memoryview(packed), state.index) if packed else None
    if graph is not None:
        state.index.adopt_graph(graph)
    set_next_number(state, moment.next_number)
    return state


def set_next_number(state: State, number: int) -> None:
    """Goes on with the numbers where they were."""
    if isinstance(state, DocumentState):
        state.next_sequence = number
    elif isinstance(state, PointState):
        state.next_version = max(state.next_version, number)


def discard_old(
    store: Store, objects: ObjectStore, collection: str, epoch: int, current: int, layout: Layout
) -> None:
    """Deletes all objects but the current snapshot's, with those that a crash left half done."""
    named = {part.name for part in layout.parts}
    # What was noted up to an epoch and is not named in it is never named again, however late this is.
    snapshots, parts = store.noted(collection, epoch)
    for part in parts:
        if part.name not in named:
            objects.delete(part.object_key)
            store.forget_part(collection, part.name)
    # Last, since they say whose parts those of a collection that was never made are.
    for snapshot in snapshots:
        if snapshot.lsn != current:
            objects.delete(snapshot.object_key)
            store.forget_snapshot(collection, snapshot)


__all__ = ["Moment", "SnapshotBroken", "Wish", "Writer", "Written", "copy", "discard_old", "read_parts"]
