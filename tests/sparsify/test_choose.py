"""Which weights are chosen: exact counts, blocks, samples."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.sparsify import choose
from support.sparse_loop import Loop, net

SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(SCORES, st.data())
def test_top_is_exact_and_prefers_earlier_ones(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    chosen = choose.top(scores, count)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert chosen.nonzero().flatten().tolist() == sorted(order[:count])


def test_a_structure_is_a_function_of_scores_alone():
    torch.manual_seed(5)
    first = Loop("rigl").run()
    torch.manual_seed(6)
    torch.randn(7)
    second = Loop("rigl").run()
    for name, mask in first.sparse.masks.items():
        assert torch.equal(mask, second.sparse.masks[name])
        assert torch.equal(first.weight(name), second.weight(name))


def test_globally_the_largest_weights_of_all_layers_stay():
    model = net()
    with torch.no_grad():
        model[3].weight *= 100
    size = {n: model.get_submodule(n).weight.detach().abs().clone() for n in ("3", "8", "10")}
    loop = Loop("static", 0.7, model=model, start="scores", ranking="global")
    masks = loop.sparse.masks
    kept = torch.cat([size[name][mask] for name, mask in masks.items()])
    gone = torch.cat([size[name][~mask] for name, mask in masks.items()])
    assert len(kept) == sum(loop.sparse.target)
    above = (kept >= gone.max()).sum()
    assert above >= len(kept) - len(masks)  # one of each layer stays, whatever it scores
    assert loop.sparse._masks.counts() != loop.sparse.target
    assert masks["3"].sum() > 10 * masks["8"].sum()


def test_a_sample_of_an_n_m_pattern_has_enough_in_every_block():
    loop = Loop("iee", None, pattern="2:4", reactivate=0.05, fraction=0.5)
    seen = 0
    while loop.sparse.stage != "final":
        awake = [part.clone() for part in loop.sparse._exploration.awake]
        left = [part.clone() for part in loop.sparse._state.left_over]
        stage = loop.sparse.stage
        loop.step()
        if stage == "explore" and loop.sparse.stage != "explore":
            for on, before, back in zip(loop.sparse._masks.active, left, awake, strict=True):
                assert not (on & ~before & ~back).any()
                seen += int((on & ~before).sum())
    assert seen
