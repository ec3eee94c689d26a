//! Pictures with labelled places drawn on them: as pixels, or as an SVG file.

mod canvas;
mod font;
mod layout;
mod svg;

#[cfg(test)]
mod tests;

use super::Image;
use canvas::{Ink, Rect, grown, paint, to_rect, to_segment};
use layout::{Layout, text_color};

pub use svg::svg;

/// A place to draw.
#[derive(Clone, Copy, Debug)]
pub struct Mark<'a> {
    /// What stands on its plate; without text there is none.
    pub label: &'a str,
    /// Two points: the corners of a box, upper left and lower right. More: a closed line. In pixels from the picture's upper
    /// left corner.
    pub points: &'a [[f64; 2]],
}

impl Mark<'_> {
    fn bounds(&self) -> Rect {
        let around = |r: Rect, p: &[f64; 2]| [r[0].min(p[0]), r[1].min(p[1]), r[2].max(p[0]), r[3].max(p[1])];
        let empty = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
        self.points.iter().fold(empty, around)
    }

    /// The sides of a closed line.
    fn sides(&self) -> impl Iterator<Item = [[f64; 2]; 2]> {
        let next = self.points.iter().cycle().skip(1);
        self.points.iter().zip(next).map(|(a, b)| [*a, *b])
    }
}

/// Dark around what is drawn, so that it stands out from any ground.
const SHADOW: Ink = Ink { rgb: [0; 3], alpha: 0.28 };

/// What to write for mark number `i`: its label, or its number where the built-in font lacks a character.
fn drawable(i: usize, label: &str) -> String {
    let label = label.split_whitespace().collect::<Vec<_>>().join(" ");
    if label.is_empty() || font::text(&label).is_some() { label } else { format!("#{}", i + 1) }
}

/// Whether [`draw`] can write `label`; it writes the mark's number, counted from 1, instead.
pub fn can_write(label: &str) -> bool {
    font::text(&label.split_whitespace().collect::<Vec<_>>().join(" ")).is_some()
}

/// Draws `marks` on a picture: frames as wide as the picture's size wants, one colour for each label, and labels where they
/// hide least.
pub fn draw(image: &mut Image, marks: &[Mark<'_>]) {
    let marks: Vec<Mark<'_>> = marks.iter().filter(|mark| !mark.points.is_empty()).copied().collect();
    let texts: Vec<String> = marks.iter().enumerate().map(|(i, mark)| drawable(i, mark.label)).collect();
    let layout = Layout::new((image.width, image.height), &marks, &texts);
    for (mark, color) in marks.iter().zip(&layout.colors) {
        let ink = Ink { rgb: *color, alpha: 1.0 };
        let shadow = (layout.line / 3.0).max(1.0);
        frame(image, mark, layout.line / 2.0 + shadow, SHADOW);
        frame(image, mark, layout.line / 2.0, ink);
    }
    for (plate, color) in layout.plates.iter().zip(&layout.colors) {
        let Some(plate) = plate else { continue };
        let radius = 0.28 * layout.em;
        let rounded = |image: &mut Image, grow: f64, ink: Ink| {
            let rect = grown(plate.rect, grow);
            paint(image, grown(rect, 1.0), None, ink, |x, y| to_rect(rect, radius + grow, x, y));
        };
        rounded(image, (layout.line / 4.0).max(1.0), SHADOW);
        rounded(image, 0.0, Ink { rgb: *color, alpha: 1.0 });
        write(image, plate, layout.em, text_color(*color));
    }
}

/// The outline of a mark, `half` pixels to both sides.
fn frame(image: &mut Image, mark: &Mark<'_>, half: f64, ink: Ink) {
    let bounds = mark.bounds();
    let outer = grown(bounds, half + 1.0);
    if mark.points.len() == 2 {
        let hole = grown(bounds, -half - 1.0);
        // Sharp inside, a little round outside.
        return paint(image, outer, Some(hole), ink, |x, y| {
            to_rect(grown(bounds, half), half, x, y).max(-to_rect(grown(bounds, -half), 0.0, x, y))
        });
    }
    paint(image, outer, None, ink, |x, y| {
        mark.sides().map(|side| to_segment(side, x, y)).fold(f64::INFINITY, f64::min) - half
    });
}

fn write(image: &mut Image, plate: &layout::Plate, em: f64, rgb: [u8; 3]) {
    let Some(text) = font::text(&plate.text) else { return };
    let scale = em / font::EM;
    let half = font::PEN / 2.0 * scale;
    let placed = |[x, y]: [f64; 2]| [plate.origin[0] + x * scale, plate.origin[1] + y * scale];
    let strokes: Vec<[[f64; 2]; 2]> = text.segments.iter().map(|segment| segment.map(placed)).collect();
    // Each column of pixels looks at the strokes near it only: a text is much longer than a letter.
    let [x1, y1, x2, y2] = grown(plate.rect, 0.0);
    for column in x1.floor().max(0.0) as usize..x2.ceil().max(0.0) as usize {
        let column = column as f64;
        let near = |[a, b]: &[[f64; 2]; 2]| {
            a[0].min(b[0]) - half - 1.0 <= column + 1.0 && a[0].max(b[0]) + half + 1.0 >= column
        };
        let strokes: Vec<[[f64; 2]; 2]> = strokes.iter().filter(|stroke| near(stroke)).copied().collect();
        if !strokes.is_empty() {
            paint(image, [column, y1, column + 1.0, y2], None, Ink { rgb, alpha: 1.0 }, |x, y| {
                strokes.iter().map(|stroke| to_segment(*stroke, x, y)).fold(f64::INFINITY, f64::min) - half
            });
        }
    }
}
