//! The pictures of a small data file, read back as XML.

use super::{Picture, all};
use crate::data::Data;
use crate::samples::SMALL;
use roxmltree::{Document, Node};

fn small() -> Data {
    Data::parse("small", SMALL).expect("the small data file")
}

fn picture(data: &Data, file: &str) -> Picture {
    let pictures = all(data).expect("pictures");
    pictures.into_iter().find(|picture| picture.file == file).expect("a picture of that name")
}

/// All texts in a picture, in the order in which they were drawn.
fn texts(picture: &Picture) -> Vec<String> {
    let document = Document::parse(&picture.svg).expect("a picture is XML");
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

fn assert_says(picture: &Picture, expected: &str) {
    let texts = texts(picture);
    assert!(texts.iter().any(|text| text == expected), "{expected:?} is not among {texts:#?}");
}

fn number(node: Node<'_, '_>, attribute: &str) -> f64 {
    let value = node.attribute(attribute).unwrap_or_else(|| panic!("{node:?} has no {attribute}"));
    value.parse().expect("a number")
}

#[test]
fn each_is_drawn_with_a_title_and_a_background_of_its_own() {
    let pictures = all(&small()).expect("pictures");
    let files = pictures.each_ref().map(|picture| picture.file);
    assert_eq!(files, ["hit.svg", "threads.svg", "waits.svg", "allocations.svg"]);
    for picture in &pictures {
        let document = Document::parse(&picture.svg).expect("a picture is XML");
        let root = document.root_element();
        assert_eq!(root.attribute("role"), Some("img"));
        assert_eq!(root.attribute("width"), Some("700"));
        let mut elements = root.children().filter(Node::is_element);
        let title = elements.next().expect("a title");
        assert!(title.has_tag_name("title"));
        assert_eq!(title.text(), Some(texts(picture)[0].as_str()));
        if picture.file != "allocations.svg" {
            let origin = "Medians of 5 interleaved rounds, 2 cores; \
                          3 of 180 measurements disturbed by others";
            assert_says(picture, origin);
        }
        let background = elements.nth(1).expect("a background");
        assert_eq!(background.attribute("fill"), Some("#FFFFFF"));
        for side in ["width", "height"] {
            assert_eq!(background.attribute(side), root.attribute(side));
        }
    }
}

#[test]
fn a_hit_is_named_and_has_its_figures_at_the_end_of_its_bar() {
    let data = small();
    let picture = picture(&data, "hit.svg");
    for (name, figures) in [
        ("bare ArrayQueue", "8.5 ns, 1×"),
        ("Pool::acquire().await", "10.75 ns, 1.26×"),
        ("<slow> & \"quoted\"", "150.5 ns, 18.1×"),
    ] {
        assert_says(&picture, name);
        assert_says(&picture, figures);
    }
    let document = Document::parse(&picture.svg).expect("XML");
    let bars = document.descendants().filter(|node| node.has_tag_name("rect")).skip(1);
    let widths: Vec<f64> = bars.map(|bar| number(bar, "width")).collect();
    assert_eq!(widths.len(), data.hit.pools.len());
    let scale = widths[2] / data.hit.pools[2].acquire_and_release_ns;
    for (width, hit) in widths.iter().zip(&data.hit.pools) {
        let expected = hit.acquire_and_release_ns * scale;
        assert!((width - expected).abs() <= 1.5, "{width} instead of {expected}");
    }
}

#[test]
fn allocations_have_two_bars_a_pool() {
    let picture = picture(&small(), "allocations.svg");
    // Only what follows the axis' own numbers is of the pools.
    let texts = texts(&picture);
    let first = texts.iter().position(|text| text == "Pool::acquire().await").expect("a name");
    let expected = ["Pool::acquire().await", "0", "0", "deadpool", "0.5", "2"];
    assert_eq!(texts[first..][..6], expected);
    assert_eq!(texts[first + 6..], ["for comparison: Box::new", "1"]);
}

#[test]
fn lines_of_threads_end_at_their_names_and_figures() {
    let data = small();
    let picture = picture(&data, "threads.svg");
    for label in ["bare ArrayQueue 115, 1×", "Pool::acquire 185, 1.93×", "deadpool 4.33, 0.65×"]
    {
        assert_says(&picture, label);
    }
    assert_says(&picture, "more threads than cores");
    let figures = data.threads.pools[1].points.iter();
    let figures: Vec<f64> = figures.map(|point| point.million_acquires_per_second).collect();
    assert_logarithmic(&heights(&picture, "#0072B2"), &figures);
}

#[test]
fn waits_have_a_panel_for_each_kind_of_deadline() {
    let data = small();
    let picture = picture(&data, "waits.svg");
    for label in [
        "Millpond: p99.9 61.5 µs",
        "deadpool: p99.9 71 µs, 1.15×",
        "Millpond: p99.9 82.5 µs",
        "p50",
        "p99.99",
    ] {
        assert_says(&picture, label);
    }
    let curves = [&data.waiting.without_deadline[0], &data.waiting.with_deadline_of_5_s[0]];
    let waits = |nth: usize| curves[nth].curve.iter().map(|wait| wait.wait_us).collect::<Vec<_>>();
    // Each panel has the circles of its line, and one in its legend.
    let all = heights(&picture, "#0072B2");
    assert_eq!(all.len(), 3 + 1 + 2 + 1);
    assert_logarithmic(&all[..3], &waits(0));
    assert_logarithmic(&all[4..6], &waits(1));
}

/// The heights of the circles in a colour.
fn heights(picture: &Picture, colour: &str) -> Vec<f64> {
    let document = Document::parse(&picture.svg).expect("XML");
    let circles = document.descendants().filter(|node| node.has_tag_name("circle"));
    let circles = circles.filter(|circle| circle.attribute("fill") == Some(colour));
    circles.map(|circle| number(circle, "cy")).collect()
}

/// Whether these heights are those of the figures on one logarithmic scale, but for whole pixels.
fn assert_logarithmic(heights: &[f64], figures: &[f64]) {
    assert_eq!(heights.len(), figures.len());
    let last = figures.len() - 1;
    let scale = (heights[last] - heights[0]) / (figures[last] / figures[0]).ln();
    for (height, figure) in heights.iter().zip(figures) {
        let expected = heights[0] + scale * (figure / figures[0]).ln();
        assert!((height - expected).abs() <= 2.0, "{figure} at {height} instead of {expected}");
    }
}

#[test]
fn labels_are_moved_apart_only_where_they_touch() {
    let mut heights = [100, 300, 104, 102, 200];
    super::lines::spread(&mut heights, 10);
    assert_eq!(heights, [92, 300, 112, 102, 200]);
}
