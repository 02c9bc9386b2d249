"""The training section: curves, updates, heat map."""

import re

import pytest

from prunekit.report import to_html
from support.reports import SMALL, Page, lines, make_report, positions, section, trained


def panel(report, name):
    """One chart of the training section, by its id."""
    found = section(report)
    start = found.find(f'<svg class="panel" role="img" aria-labelledby="{name}-title')
    if start < 0:
        return None
    return Page(found[start : found.index("</figure>", start)])


def dots(page):
    marks = page.all("circle", **{"class": "dot"})
    return [(float(a["cx"].rstrip("%")), float(a["cy"].rstrip("%"))) for a in marks]


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_a_curve_over_epochs_has_a_point_per_epoch_and_breaks_between_stages(name):
    page = panel(make_report(**trained()), name)
    assert [len(line) for line in lines(page)] == [3, 4, 5]
    assert [pair for line in lines(page) for pair in line] == [
        pytest.approx(dot, abs=0.01) for dot in dots(page)
    ]
    middles = [100 * (i + 0.5) / 12 for i in range(12)]
    assert [x for x, _ in dots(page)] == pytest.approx(middles, abs=0.01)
    borders = positions(page, "line", "x1", **{"class": "border"})
    assert borders == pytest.approx([25, 100 * 7 / 12], abs=0.01)


def test_points_lie_where_their_numbers_are():
    page = panel(make_report(**trained()), "loss")
    (top, half, third, *_) = [y for _, y in dots(page)]
    assert top < half < third  # 2, 1, 2/3: the higher the loss, the nearer the top
    assert (third - half) / (half - top) == pytest.approx((1 - 2 / 3) / (2 - 1), abs=1e-3)
    assert "dense training, epoch 1: loss 2 " in page.words
    assert "fine tuning, epoch 5: loss 0.4" in page.words
    accuracy = panel(make_report(**trained()), "accuracy")
    assert "iee, epoch 2: accuracy 85.00%" in accuracy.words


def test_the_predicted_latency_has_a_point_per_update_and_the_target():
    page = panel(make_report(**trained()), "predicted")
    assert [len(line) for line in lines(page)] == [6]
    assert [x for x, _ in dots(page)] == pytest.approx(
        [100 * 20 * (c + 1) / 120 for c in range(6)], abs=0.01
    )
    (limit,) = positions(page, "line", "y1", **{"class": "limit dashed"})
    ratios = [0.9 - 0.07 * c for c in range(6)]
    per_share = (dots(page)[5][1] - dots(page)[0][1]) / (ratios[0] - ratios[5])
    assert limit == pytest.approx(dots(page)[0][1] + (ratios[0] - 0.5) * per_share, abs=0.01)
    assert "target 50.0%" in page.words
    assert "step 120: 55.0%" in page.words


def test_iou_and_survival_share_an_axis_from_zero_to_one():
    page = panel(make_report(**trained()), "structure")
    assert [len(line) for line in lines(page)] == [6, 5]  # nothing has grown before the first
    heights = [y for _, y in dots(page)]
    assert heights[:6] == pytest.approx([100 - 100 * (0.5 + 0.08 * c) for c in range(6)], abs=0.01)
    assert heights[6:] == pytest.approx([75.0] * 5)
    assert "cycle 3: IoU 0.740" in page.words
    assert "cycle 1: survival 0.250" in page.words


def test_a_missing_value_breaks_the_curve():
    parts = trained()
    holes = [
        u.model_copy(update={"iou": None}) if u.cycle == 2 else u for u in parts.pop("updates")
    ]
    page = panel(make_report(**parts, updates=tuple(holes)), "structure")
    assert [len(line) for line in lines(page)] == [2, 3, 5]


def heat_rows(report):
    """(x, width, opacity) of every cell, row by row."""
    rows = section(report).split('<table class="bars heat">')[1].split("</table>")[0]
    return [
        [
            (int(a["x"]), int(a["width"]), float(a["fill-opacity"]))
            for a in Page(row.split("<td>")[1].split("</td>")[0]).all("rect")
        ]
        for row in rows.split("<tbody>")[1].split("</tr>")
        if "<svg" in row
    ]


def as_last_updated(parts):
    """The parts, and the widths of their last update as those of the network."""
    last = parts["updates"][-1].widths
    return parts | {"widths": {name: (SMALL[name][0], width) for name, width in last.items()}}


def test_the_heat_map_has_a_row_per_group_and_a_column_per_update():
    report = make_report(**as_last_updated(trained()))
    rows = heat_rows(report)
    assert len(rows) == len(SMALL)
    for number, (row, (full, _)) in enumerate(zip(rows, SMALL.values(), strict=True)):
        spread = [tone for _, width, tone in row for _ in range(width)]
        shares = [(full - 8 * min(c, number)) / full for c in range(6)]
        assert spread == pytest.approx([0.06 + 0.94 * share for share in shares], abs=0.006)
        assert [x for x, *_ in row] == [sum(w for _, w, _ in row[:i]) for i in range(len(row))]
    assert [len(row) for row in rows] == [1, 2, 3, 4, 5, 6, 6]  # equal neighbours are one cell
    titles = [a["title"] for a in Page(section(report)).all("tr") if "title" in a]
    assert titles[2] == "layer2.0.conv1: 128, 120, 112, 112, 112, 112 of 128 channels"
    words = Page(section(report)).words
    assert "layer4.0.conv1 512 → 472 of 512" in words
    assert "0% 25% 50% 75% 100%" in words


def test_a_plan_chosen_after_the_last_update_is_the_last_column():
    report = make_report(**trained())
    titles = [a["title"] for a in Page(section(report)).all("tr") if "title" in a]
    assert titles[2] == "layer2.0.conv1: 128, 120, 112, 112, 112, 112, 72 of 128 channels"
    words = Page(section(report)).words
    assert "6 updates from left to right, and the plan that was chosen by measuring." in words
    assert "layer2.0.conv1 128 → 72 of 128" in words
    assert all(sum(width for _, width, _ in row) == 7 for row in heat_rows(report))


def test_a_long_history_is_drawn_in_part_and_says_so():
    report = make_report(**as_last_updated(trained(updates=200)))
    assert all(sum(width for _, width, _ in row) == 60 for row in heat_rows(report))
    text = Page(section(report)).words
    assert "200 updates from left to right, of which 60 are drawn" in text
    assert "cycle 0, step 20 cycle 199, step 4000" in text
    assert len(dots(panel(report, "predicted"))) == 200


def test_the_numbers_can_be_read_without_the_charts():
    text = Page(section(make_report(**trained()))).words
    assert "12 epochs in 3 stages, the last ending at 88.00% validation accuracy." in text
    assert "6 updates of the structure, the last predicted at 55.0% of the dense latency." in text
    assert "dense training : epochs 1 to 3, iee : epochs 4 to 7, fine tuning : epochs 8" in text
    assert "stage epoch loss learning rate accuracy time dense training 1 2 0.1 80.00%" in text
    assert "fine tuning 5 0.4 0.1 88.00% 2 min 30 s" in text
    head = "cycle step predicted latency omega IoU grown survival FLOPs so far"
    assert f"{head} 0 20 90.0% 0.3 0.500 0 \u2013 0.00x 1 40 83.0% 0.3 0.580 10 25.0% 0.10x" in text


def test_what_is_not_there_is_left_out():
    assert section(make_report()) is None
    only_epochs = make_report(epochs=trained()["epochs"])
    assert panel(only_epochs, "loss") is not None
    assert panel(only_epochs, "predicted") is None
    assert "Widths over time" not in section(only_epochs)
    halp = make_report(**trained(iee=False))
    assert len(dots(panel(halp, "predicted"))) == 6
    assert panel(halp, "structure") is None
    text = Page(section(halp)).words
    assert "IoU" not in text
    assert "cycle step predicted latency 0 20 90.0% 1 40 83.0%" in text
    only_updates = section(make_report(updates=trained()["updates"]))
    assert "epoch" not in Page(only_updates).words


@pytest.mark.parametrize("count", [1, 2, 300])
def test_any_number_of_epochs_can_be_drawn(count):
    report = make_report(**trained(stages=(("iee", count),), updates=1))
    page = panel(report, "loss")
    assert len(dots(page)) == count
    assert [len(line) for line in lines(page)] == ([count] if count > 1 else [])
    assert not page.all("line", **{"class": "border"})
    first_chart = section(report).split("</figure>")[0]
    ticks = [int(text) for text in re.findall(r'dy="18"[^>]*>([^<]*)<', first_chart)]
    assert ticks
    assert all(1 <= tick <= count for tick in ticks)
    assert len(dots(panel(report, "structure"))) == 1


def test_the_training_section_is_accessible_and_inert():
    evil = "<script>alert(1)</script>"
    parts = trained(stages=((evil, 2), ("fine tuning", 2)))
    report = make_report(**parts, widths={evil: (8, 4)})
    page = Page(to_html(report))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    images = page.all("svg", role="img")
    assert len(images) == 3 + 4
    assert all(set(image["aria-labelledby"].split()) <= set(ids) for image in images)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert not page.all("script")
    assert f"{evil}, epoch 2: loss 1" in page.words
