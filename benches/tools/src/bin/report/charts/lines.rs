//! Figures of which many stand for a pool, as lines over logarithmic scales.

use super::{
    Drawn, EDGE, FAINT_INK, Frame, GRID, INK, Look, NORMAL, Paper, Picture, SHADE, SMALL, WIDTH,
    on_paper, text_style,
};
use crate::data::{Data, Side, Waits, rounded};
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::element::{PathElement, Rectangle};
use plotters::prelude::ChartBuilder;
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::Color;
use plotters::style::text_anchor::{HPos, VPos};
use std::collections::VecDeque;
use std::ops::Range;

/// What the axes take, below and on the left.
const AXIS_BELOW: u32 = 48;
const AXIS_LEFT: u32 = 54;
/// Where the plot begins.
const LEFT: i32 = EDGE - 4 + AXIS_LEFT as i32;

/// A pool's line.
struct Line {
    look: Look,
    is_dashed: bool,
    /// Places on the scale across, and figures on the scale down.
    points: Vec<(f64, f64)>,
}

/// A scale: from where to where, and where something is written along it.
struct Scale {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Scale {
    /// One with room for these figures, and ticks at round ones.
    fn around(figures: impl Iterator<Item = f64> + Clone) -> Self {
        const ROOM: f64 = 1.2;
        /// The steps within a power of ten, for a range that is long and for one that is short.
        const FEW: &[f64] = &[1.0, 2.0, 5.0];
        const MANY: &[f64] = &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0];
        let least = figures.clone().fold(f64::INFINITY, f64::min) / ROOM;
        let most = figures.fold(f64::MIN_POSITIVE, f64::max) * ROOM;
        let steps = if most / least > 10.0 { FEW } else { MANY };
        let powers = least.log10().floor() as i32..=most.log10().ceil() as i32;
        let ticks =
            powers.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
        let ticks = ticks.filter(|tick| (least..=most).contains(tick)).map(rounded);
        Self { range: least..most, ticks: ticks.collect() }
    }
}

pub fn threads(data: &Data) -> Drawn<Picture> {
    /// What the names take on the right.
    const NAMES: u32 = 210;
    let pools = &data.threads.pools;
    let points = || pools.iter().flat_map(|pool| &pool.points);
    let mut numbers: Vec<usize> = points().map(|point| point.threads).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let places: Vec<f64> = numbers.iter().map(|&threads| threads as f64).collect();
    let across =
        Scale { range: places[0] / 1.08..places[places.len() - 1] * 1.08, ticks: places.clone() };
    let down = Scale::around(points().map(|point| point.million_acquires_per_second));
    let frame = Frame {
        file: "threads.svg",
        title: "Throughput over threads",
        subtitle: &format!(
            "{} connections, nobody waits; at the end of a line: its name, M/s, times its own one thread",
            data.threads.connections
        ),
        note: &data.origin(),
        height: 470,
    };
    frame.around(|paper| {
        let lines: Vec<Line> = pools
            .iter()
            .map(|pool| Line {
                look: Look::of(&pool.name, pool.side),
                is_dashed: pool.side == Side::BareQueue,
                points: pool
                    .points
                    .iter()
                    .map(|point| (point.threads as f64, point.million_acquires_per_second))
                    .collect(),
            })
            .collect();
        let crowded = numbers.iter().position(|&threads| threads > data.cores);
        let chart = Chart {
            across: &across,
            down: &down,
            across_unit: "threads (logarithmic)",
            down_unit: "million acquires + releases per second (logarithmic)",
            tick: &|threads| threads.to_string(),
            right: NAMES,
            crowded_from: crowded.and_then(|nth| {
                let before = places[nth.checked_sub(1)?];
                Some((before * places[nth]).sqrt())
            }),
        };
        let ends = chart.draw(paper, &lines)?;
        let mut heights: Vec<i32> = ends.iter().map(|end| end.1).collect();
        spread(&mut heights, 17);
        for ((pool, line), (end, height)) in pools.iter().zip(&lines).zip(ends.iter().zip(heights))
        {
            let point = &pool.points[pool.points.len() - 1];
            let name = pool.name.trim_end_matches("().await");
            let label = format!(
                "{name} {}, {}×",
                point.million_acquires_per_second, point.times_one_thread
            );
            let lead = [(end.0 + 8, end.1), (end.0 + 18, height)];
            paper.draw(&PathElement::new(lead, line.look.colour.mix(0.6)))?;
            let style = text_style(SMALL, &INK, HPos::Left, VPos::Center);
            paper.draw_text(&label, &style, (end.0 + 22, height))?;
        }
        Ok(())
    })
}

pub fn waits(data: &Data) -> Drawn<Picture> {
    let waiting = &data.waiting;
    let panels = [
        ("nobody with a deadline", &waiting.without_deadline),
        ("all with a deadline of 5 s", &waiting.with_deadline_of_5_s),
    ];
    let points = || panels.iter().flat_map(|(_, pools)| *pools).flat_map(|pool| &pool.curve);
    let mut places: Vec<f64> = points().map(|point| place(point.percentile)).collect();
    places.sort_by(f64::total_cmp);
    let (first, last) = (places[0], places[places.len() - 1]);
    let ticks = [50.0, 90.0, 99.0, 99.9, 99.99];
    let across = Scale {
        range: first / 1.25..last * 1.6,
        ticks: ticks.map(place).into_iter().filter(|tick| *tick <= last * 1.01).collect(),
    };
    let mut down = Scale::around(points().map(|point| point.wait_us));
    // The names stand above the lines.
    down.range.end *= 1.7;
    let frame = Frame {
        file: "waits.svg",
        title: "How long an acquire waits",
        subtitle: &format!(
            "{} tasks on {} connections, {} workers: quantiles of the wait, and times Millpond's",
            waiting.tasks, waiting.connections, waiting.workers
        ),
        note: &data.origin(),
        height: 490,
    };
    frame.around(|paper| {
        let (left, right) = paper.split_horizontally(WIDTH / 2);
        for (half, (title, pools)) in [left, right].iter().zip(panels) {
            let style = text_style(NORMAL, &INK, HPos::Left, VPos::Top);
            half.draw_text(title, &style, (LEFT, 0))?;
            let chart = Chart {
                across: &across,
                down: &down,
                across_unit: "percentile of all acquires",
                down_unit: "wait in µs (logarithmic)",
                tick: &|place| format!("p{}", percentile(place)),
                right: EDGE as u32,
                crowded_from: None,
            };
            panel(&half.margin(20, 0, 0, 0), &chart, pools)?;
        }
        Ok(())
    })
}

/// One panel of waits: the lines, and above them which is whose.
fn panel(paper: &Paper<'_>, chart: &Chart<'_>, pools: &[Waits]) -> Drawn<()> {
    let line = |pool: &Waits| Line {
        look: Look::of(&pool.name, pool.side),
        is_dashed: false,
        points: pool.curve.iter().map(|point| (place(point.percentile), point.wait_us)).collect(),
    };
    let lines: Vec<Line> = pools.iter().map(line).collect();
    chart.draw(paper, &lines)?;
    for (row, (pool, line)) in pools.iter().zip(&lines).enumerate() {
        let (x, y) = (LEFT + 10, 14 + 18 * row as i32);
        line.look.mark(paper, (x + 6, y))?;
        // Of the very longest waits the machine's other work has its part, so one before them.
        let point = pool.curve.iter().find(|point| point.percentile >= 99.9);
        let point = point.unwrap_or(&pool.curve[pool.curve.len() - 1]);
        let times = match pool.side {
            Side::Millpond => String::new(),
            Side::BareQueue | Side::Peer => format!(", {}×", point.times_millpond),
        };
        let label = format!("{}: p{} {} µs{times}", pool.name, point.percentile, point.wait_us);
        let style = text_style(SMALL, &INK, HPos::Left, VPos::Center);
        paper.draw_text(&label, &style, (x + 18, y))?;
    }
    Ok(())
}

/// Where a percentile stands on the scale: one in so many acquires waits longer.
fn place(percentile: f64) -> f64 {
    1.0 / (1.0 - percentile / 100.0)
}

/// The percentile that stands there, without what the arithmetic adds.
fn percentile(place: f64) -> f64 {
    (1e6 * (1.0 - 1.0 / place)).round() / 1e4
}

/// Logarithmic axes, and lines between them.
struct Chart<'a> {
    across: &'a Scale,
    down: &'a Scale,
    across_unit: &'a str,
    down_unit: &'a str,
    /// What is written at a tick of the scale across.
    tick: &'a dyn Fn(f64) -> String,
    /// What is left free on the right.
    right: u32,
    /// From where on there are more threads than cores.
    crowded_from: Option<f64>,
}

impl Chart<'_> {
    /// Draws it, and says where on the paper each line ends.
    fn draw(&self, paper: &Paper<'_>, lines: &[Line]) -> Drawn<Vec<(i32, i32)>> {
        let across =
            self.across.range.clone().log_scale().with_key_points(self.across.ticks.clone());
        let down = self.down.range.clone().log_scale().with_key_points(self.down.ticks.clone());
        let mut chart = ChartBuilder::on(paper)
            .x_label_area_size(AXIS_BELOW)
            .y_label_area_size(AXIS_LEFT)
            .margin_top(4)
            .margin_left(EDGE - 4)
            .margin_right(self.right)
            .build_cartesian_2d(across, down)?;
        if let Some(from) = self.crowded_from {
            let corners =
                [(from, self.down.range.start), (self.across.range.end, self.down.range.end)];
            chart.draw_series([Rectangle::new(corners, SHADE.filled())])?;
        }
        chart
            .configure_mesh()
            .x_label_formatter(&|place| (self.tick)(*place))
            .y_label_formatter(&ToString::to_string)
            .x_desc(self.across_unit)
            .y_desc(self.down_unit)
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(GRID.mix(0.0))
            .label_style(text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top))
            .axis_desc_style(text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top))
            .draw()?;
        // The first ones lie above the others.
        let mut ends = VecDeque::new();
        for line in lines.iter().rev() {
            let points = line.points.iter().copied();
            let style = line.look.colour.stroke_width(2);
            if line.is_dashed {
                chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(points, style))?;
            }
            let mut end = (0, 0);
            for point in &line.points {
                end = on_paper(paper, chart.backend_coord(point));
                line.look.mark(paper, end)?;
            }
            ends.push_front(end);
        }
        if let Some(from) = self.crowded_from {
            let (x, y) = on_paper(paper, chart.backend_coord(&(from, self.down.range.end)));
            let style = text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top);
            paper.draw_text("more threads than cores", &style, (x + 6, y + 4))?;
        }
        Ok(ends.into())
    }
}

/// Moves apart what stands closer than `gap`, as little as is needed, and keeps the order.
pub(super) fn spread(heights: &mut [i32], gap: i32) {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by_key(|&nth| heights[nth]);
    // Neighbours that touch become a group around their middle, which may touch the next group.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for &nth in &order {
        let mut group = (f64::from(heights[nth]), 1);
        while let Some(&(middle, members)) = groups.last() {
            let half = |members: usize| members as f64 * f64::from(gap) / 2.0;
            if group.0 - half(group.1) >= middle + half(members) {
                break;
            }
            let all = members + group.1;
            let weighted = middle * members as f64 + group.0 * group.1 as f64;
            group = (weighted / all as f64, all);
            groups.pop();
        }
        groups.push(group);
    }
    let mut places = groups.iter().flat_map(|&(middle, members)| {
        let first = middle - (members as f64 - 1.0) / 2.0 * f64::from(gap);
        (0..members).map(move |member| (first + member as f64 * f64::from(gap)).round() as i32)
    });
    for nth in order {
        heights[nth] = places.next().unwrap_or(heights[nth]);
    }
}
