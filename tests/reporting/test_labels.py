from itertools import combinations, product

from c2r.reporting.labels import Named, _box, choose_sides, spread


def test_names_cover_neither_points_nor_names():
    points = [Named(x=x, y=y, text="priced 0.03") for x in (20, 30, 50, 99) for y in (40, 45, 50)]
    sides = choose_sides(points)
    names = [_box(point, side) for point, side in zip(points, sides, strict=True) if side]
    for name, other in [
        *combinations(names, 2),
        *product(names, [_box(point, None) for point in points]),
    ]:
        left, top, right, bottom = name
        assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, (
            name,
            other,
        )
    assert None in sides and len(names) > 3


def test_at_the_right_edge_names_stand_elsewhere():
    assert choose_sides([Named(x=98, y=50, text="plain top-k")]) == ["left"]


def test_heights_are_spread_in_their_order():
    assert spread([50, 10, 51], 8) == [50, 10, 58]
    assert spread([99, 98, 97], 8) == [100, 92, 84]
    assert spread([], 8) == []
