"""Which copies go where, and what is said when they fit nowhere."""

import pytest

from glimt.errors import BadSettings
from glimt.placement.layout import RayMachine, Wish, groups_of


def machine(name: str, total: int) -> RayMachine:
    return RayMachine(f"id-{name}", name, f"10.0.0.{ord(name)}", total)


def wish(copies: int = 1, parts: int = 1, ranks: int = 1, *, spreads: bool = True) -> Wish:
    return Wish("GPU", copies, parts, ranks, spreads)


A, B, C = machine("a", 8), machine("b", 8), machine("c", 4)


def homes(wish: Wish, *machines: RayMachine) -> list[bool]:
    return [group.is_here for group in groups_of(wish, machines, "id-a")]


def test_the_ranks_of_a_copy_are_one_bundle_so_that_they_are_on_one_machine() -> None:
    (group,) = groups_of(wish(ranks=8), (A, B), "id-a")
    assert group.bundles == ({"GPU": 8.0},)
    assert group.is_here


def test_copies_are_here_as_far_as_they_fit_and_the_others_elsewhere() -> None:
    assert homes(wish(5, ranks=4), A, B, C) == [True, True, False, False, False]


def test_copies_move_from_here_if_others_use_the_gpus_unless_they_must_be_here() -> None:
    def may_move(wish: Wish) -> list[bool]:
        return [group.may_move for group in groups_of(wish, (A, B), "id-a")]

    assert may_move(wish(3, ranks=4)) == [True, True, False]
    assert may_move(wish(2, ranks=4, spreads=False)) == [False, False]
    assert may_move(wish(parts=2, ranks=4)) == [False]
    assert may_move(Wish("GPU", 2, 1, 4, spreads=True, num_here=1)) == [False, False]


def test_copies_of_several_machines_each_begin_here_once() -> None:
    groups = groups_of(wish(2, parts=2, ranks=4), (A, B), "id-a")
    assert [(group.copy, group.is_here, len(group.bundles)) for group in groups] == [
        (0, True, 2),
        (1, False, 2),
    ]
    with pytest.raises(BadSettings, match="2 copies of 2 machines each, with 8 ranks on each"):
        groups_of(wish(2, parts=2, ranks=8), (A, B, C), "id-a")
    # Four parts fit machine a, but a copy has no two of its parts on it.
    with pytest.raises(BadSettings, match="2 copies of 2 machines each, with 2 ranks on each"):
        groups_of(wish(2, parts=2, ranks=2), (A, machine("b", 2)), "id-a")


def test_copies_that_are_to_be_together_take_one_bundle() -> None:
    def placed(copies: int, *machines: RayMachine) -> list[tuple[int, bool, dict[str, float]]]:
        wish = Wish("GPU", copies, 1, 2, spreads=True, num_together=4)
        groups = groups_of(wish, machines, "id-a")
        return [(group.copy, group.is_here, group.bundles[0]) for group in groups]

    each = {"GPU": 8.0}
    assert placed(8, A, B) == [(0, True, each), (4, False, each)]
    assert placed(8, C, A, B) == [(0, True, each), (4, False, each)]
    with pytest.raises(BadSettings, match="8 copies of 2 ranks each, 4 together, do not fit"):
        placed(8, A, C)


def test_this_machine_may_have_no_gpus_at_all() -> None:
    assert homes(wish(ranks=8), machine("a", 0), B) == [False]


def test_what_is_settled_stays_when_places_are_asked_for_again() -> None:
    again = Wish("GPU", 3, 1, 4, spreads=True, num_here=1)
    assert homes(again, A, B) == [True, False, False]


def test_with_nnodes_ranks_are_spread_evenly_and_the_first_machine_is_this_one() -> None:
    (group,) = groups_of(wish(parts=2, ranks=4), (A, C), "id-a")
    assert group.bundles == ({"GPU": 4.0}, {"GPU": 4.0})
    assert group.is_here


@pytest.mark.parametrize(
    ("wished", "machines", "said"),
    [
        (
            wish(ranks=16),
            (A, B),
            "--tensor-parallel-size 16 does not fit one machine of the Ray cluster: of GPUs, "
            "a (10.0.0.97), this one, has 8, b (10.0.0.98) has 8; spread the ranks with --nnodes 2",
        ),
        (wish(ranks=16), (A, C), "c (10.0.0.99) has 4; use a smaller one, or a larger cluster"),
        (wish(ranks=2), (machine("a", 0),), "a (10.0.0.97), this one, has 0; use a smaller one"),
        (wish(4, ranks=8), (A, B), "4 copies of 8 ranks each do not fit the Ray cluster"),
        (
            wish(2, ranks=8, spreads=False),
            (A, B),
            "2 copies of 8 ranks each do not fit this machine: of GPUs, a (10.0.0.97), this one, "
            "has 8, b (10.0.0.98) has 8; let Ray place copies with --data-parallel-backend ray",
        ),
        (wish(parts=3, ranks=8), (A, B, C), "--nnodes 3 needs as many machines with 8 GPUs each"),
        (wish(parts=2, ranks=8), (B, machine("d", 8)), "this one among them"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_there_is_and_what_to_do(
    wished: Wish, machines: tuple[RayMachine, ...], said: str
) -> None:
    with pytest.raises(BadSettings) as refused:
        groups_of(wished, machines, "id-a")
    assert said in str(refused.value)
