//! Four pictures of a data file.
//!
//! Each brings its own light background, so that it can be read on a dark page as well, and is as
//! wide as a README. A pool has the same colour in all of them; the colours are those of Okabe and
//! Ito, which stay apart for colour-blind eyes, and no picture needs them: bars are named, and lines
//! have marks of different shapes. A figure is written as the data file writes it.

mod bars;
mod lines;
#[cfg(test)]
mod tests;

use crate::data::{Data, Side};
use plotters::coord::Shift;
use plotters::element::{Circle, Polygon};
use plotters::prelude::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, RGBColor, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, IntoFont, TextStyle};
use std::io;

/// A drawn picture, and the name of its file.
pub struct Picture {
    pub file: &'static str,
    pub svg: String,
}

type Paper<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T> = Result<T, DrawingAreaErrorKind<io::Error>>;

const WIDTH: u32 = 700;
/// What the title and the line below it take, and the note at the bottom.
const HEAD: u32 = 58;
const FOOT: u32 = 34;
/// The distance of texts from the edge.
const EDGE: i32 = 16;

const BACKGROUND: RGBColor = RGBColor(0xff, 0xff, 0xff);
const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const FAINT_INK: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const GRID: RGBColor = RGBColor(0xdf, 0xe3, 0xe8);

const SHADE: RGBColor = RGBColor(0xf3, 0xf4, 0xf6);

const GREY: RGBColor = RGBColor(0x6e, 0x77, 0x81);
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);

/// Sizes of line boxes, of which the letters are four fifths.
const SMALL: f64 = 15.0;
const NORMAL: f64 = 16.0;
const LARGE: f64 = 21.0;

/// All of them.
pub fn all(data: &Data) -> Drawn<[Picture; 4]> {
    Ok([bars::hits(data)?, lines::threads(data)?, lines::waits(data)?, bars::allocations(data)?])
}

/// What stands around a picture.
struct Frame<'a> {
    file: &'static str,
    title: &'a str,
    /// What is compared, below the title.
    subtitle: &'a str,
    /// How it came about, at the bottom.
    note: &'a str,
    height: u32,
}

impl Frame<'_> {
    /// Draws the frame, and in what it leaves free whatever `draw` does.
    fn around(&self, draw: impl FnOnce(&Paper<'_>) -> Drawn<()>) -> Drawn<Picture> {
        let mut svg = String::new();
        {
            let backend = SVGBackend::with_string(&mut svg, (WIDTH, self.height));
            let paper = backend.into_drawing_area();
            paper.fill(&BACKGROUND)?;
            let title = text_style(LARGE, &INK, HPos::Left, VPos::Top);
            let title = TextStyle { font: title.font.style(FontStyle::Bold), ..title };
            paper.draw_text(self.title, &title, (EDGE, 12))?;
            let small = text_style(SMALL, &FAINT_INK, HPos::Left, VPos::Top);
            paper.draw_text(self.subtitle, &small, (EDGE, 37))?;
            let bottom = self.height as i32 - FOOT as i32 + 10;
            paper.draw_text(self.note, &small, (EDGE, bottom))?;
            draw(&paper.margin(HEAD, FOOT, 0, 0))?;
            paper.present()?;
        }
        Ok(Picture { file: self.file, svg: self.announced(&svg) })
    }

    /// With what a screen reader says: the title, and the line below it as the description.
    fn announced(&self, svg: &str) -> String {
        let (open, rest) = svg.split_once('>').unwrap_or((svg, ""));
        let (title, description) = (escaped(self.title), escaped(self.subtitle));
        format!(
            "{open} role=\"img\" aria-labelledby=\"title description\">\n\
             <title id=\"title\">{title}</title>\n\
             <desc id=\"description\">{description}</desc>{rest}"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The style of a text of this size whose given side stands where it is put.
fn text_style(
    size: f64,
    colour: &'static RGBColor,
    across: HPos,
    down: VPos,
) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).color(colour).pos(Pos::new(across, down))
}

/// The same point in the coordinates of this part of the picture.
fn on_paper(paper: &Paper<'_>, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = paper.get_base_pixel();
    (x - left, y - top)
}

/// How a pool's line looks: its colour, and the shape of its marks.
#[derive(Clone, Copy)]
struct Look {
    colour: RGBColor,
    mark: Mark,
}

#[derive(Clone, Copy)]
enum Mark {
    Circle,
    Square,
    Diamond,
    Up,
    Down,
}

impl Look {
    fn of(name: &str, side: Side) -> Self {
        let (colour, mark) = match (side, name) {
            (Side::BareQueue, _) => (GREY, Mark::Square),
            (Side::Millpond, name) if name.starts_with("Object") => (SKY, Mark::Circle),
            (Side::Millpond, _) => (BLUE, Mark::Circle),
            (Side::Peer, "asyncband") => (ORANGE, Mark::Up),
            (Side::Peer, "bb8") => (PURPLE, Mark::Square),
            (Side::Peer, "r2d2") => (GREEN, Mark::Diamond),
            (Side::Peer, _) => (VERMILION, Mark::Down),
        };
        Self { colour, mark }
    }

    /// Puts its mark there.
    fn mark(self, paper: &Paper<'_>, (x, y): (i32, i32)) -> Drawn<()> {
        const R: i32 = 5;
        let corners = match self.mark {
            Mark::Circle => return paper.draw(&Circle::new((x, y), R, self.colour.filled())),
            Mark::Square => [(-4, -4), (4, -4), (4, 4), (-4, 4)].to_vec(),
            Mark::Diamond => [(0, -R - 1), (R + 1, 0), (0, R + 1), (-R - 1, 0)].to_vec(),
            Mark::Up => [(0, -R - 1), (R, 4), (-R, 4)].to_vec(),
            Mark::Down => [(0, R + 1), (R, -4), (-R, -4)].to_vec(),
        };
        let corners: Vec<_> = corners.into_iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
        paper.draw(&Polygon::new(corners, self.colour.filled()))
    }
}
