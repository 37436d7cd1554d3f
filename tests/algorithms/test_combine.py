"""What may be combined in one run, and the sentence that refuses the rest."""

import dataclasses

import numpy as np
import pytest

from dataflex.algorithms.combine import Circumstances, Combination, Part, check_combination, decides
from dataflex.algorithms.mix.doremi import DoReMi
from dataflex.algorithms.mix.odm import ODM
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.order.folding import Folding
from dataflex.algorithms.order.sorting import Sorting
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static
from dataflex.algorithms.weigh.column import Column
from dataflex.algorithms.weigh.focal import Focal
from dataflex.algorithms.weigh.loss import LossWeigher
from dataflex.core.errors import ConfigError

DELTA, RANDOM = Part(name="delta_loss", method=DeltaLoss()), Part(name="random", method=Random())
REPLAY, LIST = Part(name="replay", method=Replay(path="former")), Part(name="static", method=Static(path="rows.npy"))
MIX, ADAPTIVE = Part(name="static", method=StaticMix()), Part(name="odm", method=ODM())
PROXY = Part(name="doremi", method=DoReMi(step=2, reference="ref"))
LOSS, COLUMN = Part(name="loss", method=LossWeigher()), Part(name="column", method=Column())
FOCAL = Part(name="focal", method=Focal())
SORTED, FOLDED = Part(name="sorting", method=Sorting()), Part(name="folding", method=Folding())
OVER_RUN = Part(name="folding", method=Folding(over="run"))


@dataclasses.dataclass(frozen=True)
class Marked:
    """A method of another package that says what it is."""

    traits: frozenset[str]


def marked(name: str, *traits: str) -> Part:
    return Part(name=name, method=Marked(frozenset(traits)))


INFOBATCH, RHO1, ADAPT = (Part(name=name, method=None) for name in ("infobatch", "rho1", "adapt"))

SERVED = [
    (Combination(), Circumstances()),
    (
        Combination(selectors=[DELTA], mixers=[ADAPTIVE], weighers=[LOSS, COLUMN], orders=[FOLDED]),
        Circumstances(rows_in_scope=8),
    ),
    (Combination(selectors=[DELTA], mixers=[MIX], mode="select_then_mix", keep=0.5), Circumstances()),
    (Combination(orders=[OVER_RUN, SORTED]), Circumstances()),
    (Combination(selectors=[LIST], orders=[OVER_RUN]), Circumstances()),
    (Combination(selectors=[REPLAY], orders=[SORTED], weighers=[FOCAL]), Circumstances()),
    (Combination(mixers=[PROXY], weighers=[LOSS]), Circumstances()),
    (
        Combination(
            mixers=[Part(name="doremi", method=DoReMi(step=2, reference="r", apply="sample"))],
            weighers=[marked("d", "weighs_domains")],
        ),
        Circumstances(),
    ),
    (Combination(mixers=[MIX]), Circumstances(host_loss="dft", fused_loss="liger")),
    (Combination(selectors=[INFOBATCH], weighers=[LOSS]), Circumstances()),
    (Combination(weighers=[FOCAL, LOSS], normalize="mean_one"), Circumstances()),
    (Combination(selectors=[RANDOM]), Circumstances(pool_changes=True)),
    (
        Combination(selectors=[RANDOM], mixers=[MIX]),
        Circumstances(domain_quotas_D=np.array([3, 4]), domain_candidates_D=np.array([3, 9])),
    ),
]

REFUSED = [
    (Combination(selectors=[DELTA, RANDOM]), Circumstances(), "2 selectors are named .delta_loss, random"),
    (Combination(mixers=[MIX, ADAPTIVE]), Circumstances(), "2 mixers are named .static, odm"),
    (Combination(mixers=[MIX], mode="select_then_mix"), Circumstances(), "needs a selector and a mixer"),
    (
        Combination(selectors=[DELTA], mixers=[MIX], keep=0.5),
        Circumstances(),
        "keep is 0.5 beside mode: mix_then_select",
    ),
    (Combination(mode="both"), Circumstances(), "mode is 'both'"),  # type: ignore[arg-type]
    (Combination(keep=0.0), Circumstances(), "keep is 0.0"),
    (Combination(mixers=[dataclasses.replace(MIX, every=0)]), Circumstances(), "every of static is 0"),
    (
        Combination(mixers=[PROXY], weighers=[marked("by_domain", "weighs_domains")]),
        Circumstances(),
        "doremi weights .* so does by_domain",
    ),
    (Combination(mixers=[PROXY]), Circumstances(host_loss="dft"), "doremi weighs the plain loss .*'dft'"),
    (Combination(selectors=[INFOBATCH], normalize="mean_one"), Circumstances(), "cancels the weights .* infobatch"),
    (Combination(selectors=[INFOBATCH, RANDOM]), Circumstances(), "2 selectors"),
    (Combination(selectors=[INFOBATCH], mixers=[MIX]), Circumstances(), "infobatch gives the rows it keeps a weight"),
    (Combination(weighers=[RHO1, FOCAL]), Circumstances(), "rho1 keeps the tokens .* focal"),
    (
        Combination(selectors=[marked("greats")], mixers=[MIX]),
        Circumstances(domain_quotas_D=np.array([3, 4]), domain_candidates_D=np.array([3, 2])),
        "greats draws 2 candidates of domain 1, of which 4",
    ),
    (Combination(selectors=[DELTA], orders=[OVER_RUN]), Circumstances(), "over: run, and delta_loss draws other rows"),
    (Combination(mixers=[ADAPTIVE], orders=[OVER_RUN]), Circumstances(), "over: run, and odm draws other rows"),
    (Combination(orders=[SORTED, FOLDED]), Circumstances(), "sorting, folding are over segment and segment"),
    (Combination(orders=[SORTED, OVER_RUN]), Circumstances(), "over segment and run"),
    (
        Combination(selectors=[REPLAY], mixers=[MIX]),
        Circumstances(),
        "replay repeats recorded rows, which the mixer static",
    ),
    (Combination(selectors=[DELTA]), Circumstances(pool_changes=True), "delta_loss compares each row's loss"),
    (Combination(weighers=[ADAPT]), Circumstances(packed_without_segment_ids=True), "adapt needs to know"),
    (Combination(weighers=[LOSS]), Circumstances(host_loss="eaft"), "loss weighs the plain loss .*'eaft'"),
    (Combination(weighers=[COLUMN]), Circumstances(fused_loss="liger"), "column needs the loss of each row"),
    (Combination(weighers=[LOSS]), Circumstances(rows_in_scope=1), "compares the 1 row of a micro-batch"),
]


@pytest.mark.parametrize(("combination", "circumstances"), SERVED, ids=range(len(SERVED)))
def test_what_goes_together_is_served(combination, circumstances):
    check_combination(combination, circumstances)


@pytest.mark.parametrize(("combination", "circumstances", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_what_does_not_is_refused_with_one_sentence_and_a_remedy(combination, circumstances, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_combination(combination, circumstances)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_a_component_decides_at_each_of_its_segments_and_from_the_start():
    assert [s for s in range(7) if decides(3, s)] == [0, 3, 6]
    assert all(decides(1, s) for s in range(4))
