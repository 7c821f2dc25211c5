//! Figures of which one stands for a pool, as bars from zero, each with its figure at the end.

use super::{
    BLUE, Drawn, FAINT_INK, FOOT, Frame, GREY, GRID, HEAD, INK, NORMAL, ORANGE, Paper, Picture,
    SMALL, VERMILION, on_paper, text_style,
};
use crate::data::{Data, Side, rounded};
use plotters::element::Rectangle;
use plotters::prelude::{ChartBuilder, RGBColor};
use plotters::style::Color;
use plotters::style::text_anchor::{HPos, VPos};

/// What the names take on the left, the axis below, and a row.
const NAMES: u32 = 222;
const AXIS: u32 = 48;
const ROW: u32 = 27;
/// What the legend takes.
const LEGEND: u32 = 26;

/// A bar: how long, in which colour, and what is written at its end.
struct Bar {
    length: f64,
    colour: RGBColor,
    label: String,
}

pub fn hits(data: &Data) -> Drawn<Picture> {
    let rows: Vec<_> = data
        .hit
        .pools
        .iter()
        .map(|hit| {
            let colour = match hit.side {
                Side::BareQueue => GREY,
                Side::Millpond => BLUE,
                Side::Peer => VERMILION,
            };
            let (ns, times) = (hit.acquire_and_release_ns, hit.times_bare_queue);
            let label = format!("{ns} ns, {times}×");
            (hit.name.as_str(), vec![Bar { length: ns, colour, label }])
        })
        .collect();
    let frame = Frame {
        file: "hit.svg",
        title: "What a hit costs",
        subtitle: &format!(
            "One task, {} connections: ns per acquire + release, and times a bare ArrayQueue's pop + push",
            data.hit.connections
        ),
        note: &data.origin(),
        height: HEAD + rows.len() as u32 * ROW + AXIS + FOOT,
    };
    frame.around(|paper| draw(paper, &rows, "ns per acquire + release"))
}

pub fn allocations(data: &Data) -> Drawn<Picture> {
    const HIT: (&str, RGBColor) = ("acquire + release, a hit", BLUE);
    const WAIT: (&str, RGBColor) = ("acquire that waits + release", ORANGE);
    const BOX: (&str, RGBColor) = ("", GREY);
    let bar = |length: f64, (_, colour)| Bar { length, colour, label: length.to_string() };
    let counted = &data.allocations;
    let mut rows: Vec<_> = counted
        .pools
        .iter()
        .map(|pool| {
            let hit = bar(pool.allocations_per_acquire_and_release, HIT);
            let wait = bar(pool.allocations_per_wait, WAIT);
            (pool.name.as_str(), vec![hit, wait])
        })
        .collect();
    rows.push(("for comparison: Box::new", vec![bar(counted.allocations_per_box, BOX)]));
    let frame = Frame {
        file: "allocations.svg",
        title: "What is allocated",
        subtitle: "Allocations per acquire + release, when one is idle and when the acquire has to wait",
        note: "Counted by the program's allocator, after a warm-up",
        height: HEAD + LEGEND + rows.len() as u32 * 3 * ROW / 2 + AXIS + FOOT,
    };
    frame.around(|paper| {
        let (legend, chart) = paper.split_vertically(LEGEND);
        let style = text_style(SMALL, &INK, HPos::Left, VPos::Center);
        for (x, (text, colour)) in [(NAMES as i32, HIT), (NAMES as i32 + 200, WAIT)] {
            legend.draw(&Rectangle::new([(x, 6), (x + 12, 18)], colour.filled()))?;
            legend.draw_text(text, &style, (x + 18, 12))?;
        }
        draw(&chart, &rows, "allocations")
    })
}

/// Rows from the top down, each a name and its bars.
fn draw(paper: &Paper<'_>, rows: &[(&str, Vec<Bar>)], unit: &str) -> Drawn<()> {
    /// The longest bar leaves room for its label.
    const ROOM: f64 = 1.28;
    /// The share of a row that is free between it and the next.
    const FREE: f64 = 0.26;
    let bars = || rows.iter().flat_map(|(_, bars)| bars);
    let longest = bars().map(|bar| bar.length).fold(0.0, f64::max);
    let most = rows.iter().map(|(_, bars)| bars.len()).max().unwrap_or(1);
    let longest = if longest > 0.0 { longest } else { 1.0 };
    let mut chart = ChartBuilder::on(paper)
        .x_label_area_size(AXIS)
        .y_label_area_size(NAMES)
        .margin_right(16)
        .build_cartesian_2d(0.0..longest * ROOM, 0.0..rows.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(8)
        .x_label_formatter(&|length| rounded(*length).to_string())
        .x_desc(unit)
        .axis_style(GRID)
        .bold_line_style(GRID)
        .light_line_style(GRID.mix(0.0))
        .label_style(text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top))
        .axis_desc_style(text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top))
        .draw()?;
    let place = |x: f64, y: f64| on_paper(paper, chart.backend_coord(&(x, y)));
    let name_style = text_style(NORMAL, &INK, HPos::Right, VPos::Center);
    let label_style = text_style(SMALL, &INK, HPos::Left, VPos::Center);
    for (row, (name, bars)) in rows.iter().enumerate() {
        let above = (rows.len() - row) as f64;
        let (x, y) = place(0.0, above - 0.5);
        paper.draw_text(name, &name_style, (x - 10, y))?;
        let height = (1.0 - FREE) / most as f64;
        for (nth, bar) in bars.iter().enumerate() {
            let from = above - 0.5 + (bars.len() as f64 / 2.0 - nth as f64) * height;
            let (corner, opposite) = (place(0.0, from), place(bar.length, from - height));
            paper.draw(&Rectangle::new([corner, opposite], bar.colour.filled()))?;
            let middle = i32::midpoint(corner.1, opposite.1);
            paper.draw_text(&bar.label, &label_style, (opposite.0 + 6, middle))?;
        }
    }
    Ok(())
}
