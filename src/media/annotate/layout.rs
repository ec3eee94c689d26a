//! Where the labels of places go, and how thick and large everything is: the same for every kind of output.

use super::canvas::{Rect, grown, overlap};
use super::{Mark, font};

/// A label on its plate.
pub struct Plate {
    pub rect: Rect,
    pub text: String,
    /// Left end of the baseline.
    pub origin: [f64; 2],
    /// Width of the text in pixels.
    pub width: f64,
}

/// Sizes in pixels of the picture, colours, and one plate for each label.
pub struct Layout {
    /// Width of frames.
    pub line: f64,
    /// Height of an em of text.
    pub em: f64,
    /// The colour of each mark.
    pub colors: Vec<[u8; 3]>,
    /// The plate of each mark; `None` for marks without a label and where the picture is too small.
    pub plates: Vec<Option<Plate>>,
}

/// Colours that stand apart from each other and from most photographs.
pub const PALETTE: [[u8; 3]; 10] = [
    [0xf2, 0x4b, 0x5e],
    [0x10, 0xa3, 0x94],
    [0xff, 0xb0, 0x20],
    [0x4c, 0x86, 0xf7],
    [0xa6, 0x5c, 0xf0],
    [0x7a, 0xc7, 0x2e],
    [0xf0, 0x62, 0xc0],
    [0x1f, 0xb6, 0xee],
    [0xff, 0x7d, 0x2d],
    [0x9c, 0x8f, 0x2e],
];

/// Black or white, whichever is easier to read on `color`.
pub fn text_color([r, g, b]: [u8; 3]) -> [u8; 3] {
    let light = 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    if light > 150.0 { [0x18, 0x18, 0x1b] } else { [0xff; 3] }
}

/// Width of `text` in ems: as the font has it, else as fonts usually do.
pub fn width(text: &str) -> f64 {
    let usual = |c: char| if c.is_ascii() || c < '\u{2e80}' { 0.56 } else { 1.0 };
    font::text(text).map_or_else(|| text.chars().map(usual).sum(), |text| text.width / font::EM)
}

/// `text` as it fits in `room` ems, with an ellipsis where it was cut; `None` if not even that fits.
fn cut(text: &str, room: f64) -> Option<String> {
    if width(text) <= room {
        return Some(text.to_owned());
    }
    let ends = text.char_indices().map(|(at, _)| at).rev();
    let mut cuts = ends.map(|at| format!("{}…", text[..at].trim_end()));
    cuts.find(|cut| width(cut) <= room)
}

impl Layout {
    /// The layout of `marks`, with a text for each, on a picture of `width` × `height`.
    pub fn new(size: (usize, usize), marks: &[Mark<'_>], texts: &[String]) -> Layout {
        let (width, height) = (size.0 as f64, size.1 as f64);
        let scale = (width * height).sqrt();
        let line = (scale / 300.0).max(2.0).round();
        let em = (scale / 38.0).max(13.0).min(height / 2.0);

        let mut labels: Vec<&str> = Vec::new();
        let colors = marks.iter().map(|mark| {
            let at = labels.iter().position(|label| *label == mark.label).unwrap_or_else(|| {
                labels.push(mark.label);
                labels.len() - 1
            });
            PALETTE[at % PALETTE.len()]
        });
        let colors = colors.collect();

        // Small places choose first: they have the least room.
        let bounds: Vec<Rect> = marks.iter().map(Mark::bounds).collect();
        let area = |i: &usize| (bounds[*i][2] - bounds[*i][0]) * (bounds[*i][3] - bounds[*i][1]);
        let mut order: Vec<usize> = (0..marks.len()).collect();
        order.sort_by(|a, b| area(a).total_cmp(&area(b)));
        let mut plates: Vec<Option<Plate>> = marks.iter().map(|_| None).collect();
        let mut taken: Vec<Rect> = Vec::new();
        for i in order {
            let plate = place(&texts[i], bounds[i], [width, height], line, em, &taken, &bounds);
            taken.extend(plate.iter().map(|plate| plate.rect));
            plates[i] = plate;
        }
        Layout { line, em, colors, plates }
    }
}

/// The plate of `text` beside the box `of`, where it hides least.
fn place(
    text: &str,
    of: Rect,
    [width, height]: [f64; 2],
    line: f64,
    em: f64,
    taken: &[Rect],
    boxes: &[Rect],
) -> Option<Plate> {
    if text.is_empty() {
        return None;
    }
    let margin = 0.42 * em;
    let text = cut(text, (width - 2.0 * margin) / em)?;
    let text_width = self::width(&text) * em;
    let size = [text_width + 2.0 * margin, 1.45 * em];

    // Outer edges of the frame.
    let [x1, y1, x2, y2] = grown(of, line / 2.0);
    let (left, right) = (x1, x2 - size[0]);
    let mut corners = vec![
        [left, y1 - size[1] + line],
        [left, y1],
        [right, y1 - size[1] + line],
        [right, y1],
        [left, y2 - line],
        [left, y2 - size[1]],
        [right, y2 - line],
        [right, y2 - size[1]],
    ];
    for step in 1..=taken.len() {
        let by = step as f64 * size[1];
        corners.extend([[left, y1 - size[1] + line - by], [left, y1 + by], [left, y2 - line + by]]);
    }
    let candidates = corners.into_iter().enumerate().map(|(rank, [x, y])| {
        let at = [x.clamp(0.0, (width - size[0]).max(0.0)), y.clamp(0.0, (height - size[1]).max(0.0))];
        let rect = [at[0], at[1], at[0] + size[0], at[1] + size[1]];
        let shifted = ((at[0] - x).abs() + (at[1] - y).abs()) / em;
        let whole = size[0] * size[1];
        let labels: f64 = taken.iter().map(|other| overlap(rect, grown(*other, 0.1 * em))).sum();
        // What a box loses matters, less so how much of the plate lies on it.
        let boxes = boxes.iter().map(|other| {
            let hidden = overlap(rect, *other);
            let area = ((other[2] - other[0]) * (other[3] - other[1])).max(1.0);
            hidden / area + 0.1 * hidden / whole
        });
        let below = if rank >= 4 { 0.2 } else { 0.0 };
        let cost = 100.0 * labels / whole + boxes.sum::<f64>() + 0.25 * shifted + 0.02 * rank as f64 + below;
        (cost, rect)
    });
    let (_, rect) = candidates.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let baseline = (rect[1] + rect[3] + em * font::CAPITALS / font::EM) / 2.0;
    Some(Plate { rect, text, origin: [rect[0] + margin, baseline], width: text_width })
}
