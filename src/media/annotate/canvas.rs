//! Shapes on a picture with smooth edges: each pixel is covered as far as the signed distance of its centre to the edge says.

use crate::media::Image;

/// Left, top, right, bottom.
pub type Rect = [f64; 4];

/// The rectangle that is larger by `by` on each side.
pub fn grown([x1, y1, x2, y2]: Rect, by: f64) -> Rect {
    [x1 - by, y1 - by, x2 + by, y2 + by]
}

/// The area that two rectangles share.
pub fn overlap(a: Rect, b: Rect) -> f64 {
    let width = a[2].min(b[2]) - a[0].max(b[0]);
    let height = a[3].min(b[3]) - a[1].max(b[1]);
    width.max(0.0) * height.max(0.0)
}

/// A colour and how much it hides, from 0 to 1.
#[derive(Clone, Copy)]
pub struct Ink {
    pub rgb: [u8; 3],
    pub alpha: f64,
}

/// Distance of a point to the edge of a rectangle with round corners; negative inside.
pub fn to_rect([x1, y1, x2, y2]: Rect, radius: f64, x: f64, y: f64) -> f64 {
    let radius = radius.min((x2 - x1) / 2.0).min((y2 - y1) / 2.0);
    let dx = (x - (x1 + x2) / 2.0).abs() - (x2 - x1) / 2.0 + radius;
    let dy = (y - (y1 + y2) / 2.0).abs() - (y2 - y1) / 2.0 + radius;
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - radius
}

/// Distance of a point to a straight line between two points.
pub fn to_segment([[ax, ay], [bx, by]]: [[f64; 2]; 2], x: f64, y: f64) -> f64 {
    let (dx, dy) = (bx - ax, by - ay);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { (((x - ax) * dx + (y - ay) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    (x - ax - t * dx).hypot(y - ay - t * dy)
}

/// Paints where `distance` is negative. Nothing outside `bounds` is touched, nor inside `hole`.
pub fn paint(image: &mut Image, bounds: Rect, hole: Option<Rect>, ink: Ink, distance: impl Fn(f64, f64) -> f64) {
    // A float becomes an integer within its range whatever it is.
    let index = |v: f64, end: usize| (v.max(0.0) as usize).min(end);
    let rows = index(bounds[1].floor(), image.height)..index(bounds[3].ceil(), image.height);
    let (left, right) = (index(bounds[0].floor(), image.width), index(bounds[2].ceil(), image.width));
    for row in rows {
        let y = row as f64 + 0.5;
        let skip = match hole {
            Some([x1, y1, x2, y2]) if y > y1 && y < y2 && x2 > x1 => {
                index(x1.ceil(), right).max(left)..index(x2.floor(), right).max(left)
            }
            _ => right..right,
        };
        for column in (left..skip.start).chain(skip.end.max(skip.start)..right) {
            let covered = (0.5 - distance(column as f64 + 0.5, y)).clamp(0.0, 1.0) * ink.alpha;
            if covered > 0.0 {
                let at = (row * image.width + column) * 3;
                for (value, ink) in image.rgb[at..at + 3].iter_mut().zip(ink.rgb) {
                    *value = (f64::from(*value) + (f64::from(ink) - f64::from(*value)) * covered).round() as u8;
                }
            }
        }
    }
}
