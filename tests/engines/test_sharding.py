"""Layers divided among shards: every width divides, and stored values are in the right place."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sgate_serve.architecture.family import ATTENTION, KEY, MLP, QUERY, READERS, VALUE, WRITERS
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.engines.vllm.sharding import PADDING, ShardedLayer

SHARDS = st.integers(1, 9)
LAYERS = st.builds(
    lambda kv_heads, queries, width, units: LayerShape(kv_heads * queries, kv_heads, width, units),
    kv_heads=st.integers(0, 12),
    queries=st.integers(1, 5),
    width=st.sampled_from([1, 2, 12]),
    units=st.integers(0, 40),
)
# Recurrent ones, whose keys have a width of their own.
RECURRENT = LAYERS.map(lambda layer: replace(layer, key_dim=3))
LAYERS |= RECURRENT
WITH_HEADS = LAYERS.filter(lambda layer: layer.num_heads > 0)


@given(stored=LAYERS, shards=SHARDS)
def test_every_width_divides(stored: LayerShape, shards: int) -> None:
    layer = ShardedLayer(stored, shards)
    padded = layer.padded
    assert padded.mlp_units % shards == 0
    assert 0 <= padded.mlp_units - stored.mlp_units < shards
    assert padded.num_heads % shards == 0
    if stored.num_heads:
        assert padded.num_heads % padded.num_kv_heads == 0
        # One shard has whole KV heads, or one KV head is on several whole shards.
        assert padded.num_kv_heads % shards == 0 or shards % padded.num_kv_heads == 0
        assert layer.num_heads % layer.num_kv_heads == 0
    assert padded.head_dim == stored.head_dim


@given(stored=LAYERS)
def test_a_single_shard_has_the_stored_layer(stored: LayerShape) -> None:
    layer = ShardedLayer(stored)
    assert layer.padded == stored
    assert (layer.num_heads, layer.padded.num_kv_heads) == (stored.num_heads, stored.num_kv_heads)
    for sources in {**layer.rows, **layer.columns}.values():
        np.testing.assert_array_equal(sources, np.arange(len(sources)))


@given(stored=LAYERS, shards=SHARDS)
def test_all_that_is_stored_comes_once_and_in_order(stored: LayerShape, shards: int) -> None:
    layer = ShardedLayer(stored, shards)
    before, after = (shape.linear_shapes(1) for shape in (layer.stored, layer.padded))
    axes = {
        **dict.fromkeys((*READERS[ATTENTION], *READERS[MLP]), 0),
        **dict.fromkeys(WRITERS.values(), 1),
    }
    sizes = {
        role: [shapes.get(role, (0, 0))[axis] for shapes in (before, after)]
        for role, axis in axes.items()
    }
    sources = {**layer.rows, **layer.columns}
    assert sources.keys() == sizes.keys()
    for role, (stored_size, padded_size) in sizes.items():
        found = sources[role]
        assert len(found) == padded_size
        np.testing.assert_array_equal(found[found != PADDING], np.arange(stored_size))


@given(stored=WITH_HEADS, shards=SHARDS)
def test_each_kv_group_keeps_its_queries_on_its_own_shards(stored: LayerShape, shards: int) -> None:
    """Replay what vLLM does with the padded layer: query head h attends with KV head h // group."""
    layer = ShardedLayer(stored, shards)
    width, role = stored.head_dim, VALUE if stored.is_recurrent else QUERY
    key_width = stored.key_dim or width
    queries, kv_heads = (
        layer.rows[role][::width] // width,
        layer.rows[KEY][::key_width] // key_width,
    )
    is_copied = layer.padded.num_kv_heads < shards
    copies = shards // layer.padded.num_kv_heads if is_copied else 1
    for shard in range(shards):
        own = queries[shard * layer.num_heads :][: layer.num_heads]
        own_kv = kv_heads[shard // copies * layer.num_kv_heads :][: layer.num_kv_heads]
        for position, query in enumerate(own):
            kv = own_kv[position // (layer.num_heads // layer.num_kv_heads)]
            if query != PADDING:
                assert kv == query // stored.queries_per_kv


@given(kv_heads=st.integers(1, 4), copies=st.integers(2, 4), queries=st.integers(1, 5))
def test_few_kv_heads_are_replicated_rather_than_padded(
    kv_heads: int, copies: int, queries: int
) -> None:
    stored = LayerShape(kv_heads * queries, kv_heads, 2, 4)
    layer = ShardedLayer(stored, kv_heads * copies)
    assert layer.padded.num_kv_heads == kv_heads
    assert layer.num_kv_heads == 1
    assert layer.padded.queries_per_kv == -(-queries // copies) * copies
