//! The same drawing as an SVG file: the picture inside it, frames and labels as shapes and text.

use super::layout::{Layout, Plate, text_color};
use super::{Image, Mark};
use crate::Result;
use crate::media::encode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// Largest PNG that is put into an SVG file; beyond it the picture is stored as JPEG.
const MAX_PNG: usize = 1 << 20;
/// Quality of such a JPEG, of 100.
const QUALITY: u8 = 92;

/// An SVG file of a picture with `marks` on it. Each mark is a `<g>` with its label as `<title>`.
///
/// # Errors
/// A picture too large to be encoded.
pub fn svg(image: &Image, marks: &[Mark<'_>]) -> Result<String> {
    let marks: Vec<Mark<'_>> = marks.iter().filter(|mark| !mark.points.is_empty()).copied().collect();
    let joined = |mark: &Mark<'_>| mark.label.split_whitespace().collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = marks.iter().map(joined).collect();
    let layout = Layout::new((image.width, image.height), &marks, &texts);
    let (width, height) = (image.width, image.height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
    );
    let (kind, picture) = match encode::png(image)? {
        png if png.len() <= MAX_PNG => ("png", png),
        _ => ("jpeg", encode::jpeg(image, QUALITY)?),
    };
    let data = STANDARD.encode(picture);
    let _ = writeln!(out, "<image width=\"{width}\" height=\"{height}\" href=\"data:image/{kind};base64,{data}\"/>");
    for (mark, color) in marks.iter().zip(&layout.colors) {
        shape(&mut out, mark, *color, layout.line);
    }
    for (plate, color) in layout.plates.iter().zip(&layout.colors) {
        if let Some(plate) = plate {
            label(&mut out, plate, *color, layout.em);
        }
    }
    out.push_str("</svg>\n");
    Ok(out)
}

fn shape(out: &mut String, mark: &Mark<'_>, color: [u8; 3], line: f64) {
    let title = escaped(mark.label);
    let points: Vec<String> = mark.points.iter().map(|[x, y]| format!("{},{}", short(*x), short(*y))).collect();
    let shape = match mark.points {
        [[x1, y1], [x2, y2]] => {
            let [x, y, width, height] = [*x1, *y1, x2 - x1, y2 - y1].map(short);
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"")
        }
        _ => format!("<polygon points=\"{}\"", points.join(" ")),
    };
    let line_of = |stroke: &str, width: f64, more: &str| {
        let width = short(width);
        format!("{shape} fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\" stroke-linejoin=\"round\"{more}/>")
    };
    let shadow = line_of("#000", line + 2.0 * (line / 3.0).max(1.0), " stroke-opacity=\"0.28\"");
    let frame = line_of(&hex(color), line, "");
    let _ = writeln!(out, "<g><title>{title}</title>{shadow}{frame}</g>");
}

fn label(out: &mut String, plate: &Plate, color: [u8; 3], em: f64) {
    let [x1, y1, x2, y2] = plate.rect;
    let [x, y, width, height] = [x1, y1, x2 - x1, y2 - y1].map(short);
    let (ground, ink, radius) = (hex(color), hex(text_color(color)), short(0.28 * em));
    let _ = write!(
        out,
        "<g><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" fill=\"{ground}\"/>"
    );
    let [x, y] = plate.origin.map(short);
    // Whatever font there is: the text takes the room that it has.
    let (size, length, text) = (short(em), short(plate.width), escaped(&plate.text));
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-family=\"sans-serif\" font-size=\"{size}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{ink}\">{text}</text></g>"
    );
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// To hundredths.
fn short(v: f64) -> f64 {
    (v * 100.0).round() / 100.0
}

/// `text` as XML allows it: no markup, no characters that XML 1.0 lacks.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}
