"""The alignment that compares two lists of allocator events."""

from tests.simulation.event_alignment import Difference, align, normalised, positions


def test_sizes_are_rounded_and_empty_requests_left_out():
    assert normalised([1, 0, 513, -3, -2, -1]) == [512, 1024, -1, -2]


def test_releases_in_a_row_have_no_order():
    assert normalised([512, 512, -2, -1, 512, -3]) == normalised([512, 512, -1, -2, 512, -3])
    assert normalised([512, 512, -2, 512, -1, -3]) != normalised([512, 512, -1, 512, -2, -3])


def test_positions_are_those_of_the_list_that_was_normalised():
    assert positions([1, 0, 513, -3, -1]) == [0, 2, 4, 3]


def test_equal_lists_have_no_differences():
    events = normalised([100, 2000, -1, 300, -2, -3])
    assert align(events, list(events)) == []


def test_an_extra_allocation_does_not_shift_the_rest():
    common = [512 * n for n in range(1, 40)]
    extra = [*common[:20], 1 << 20, -21, *common[20:]]
    assert align(common, extra) == [Difference(expected=(20, 20), found=(20, 22))]


def test_a_different_size_is_found_at_its_birth_and_at_its_death():
    left = [512 * n for n in range(1, 31)] + [-n for n in range(1, 31)]
    right = list(left)
    right[14] = 1 << 20
    found = align(left, right)
    assert [difference.expected for difference in found] == [(14, 15), (44, 45)]


def test_the_other_of_two_equal_blocks_is_a_difference_of_lifetimes():
    left = [512, 512, -1, 1024, -2]
    right = [512, 512, -2, 1024, -1]
    found = align(left, right)
    assert [difference.is_lifetime for difference in found] == [True, True]


def test_nothing_in_common():
    assert align([512, 1024], [2048]) == [Difference(expected=(0, 2), found=(0, 1))]
