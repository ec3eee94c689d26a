//! Places that answers point at, in pixels of the pictures that they are about.

use crate::media::View;
use crate::text::grounding::Place;

/// A place in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// What is there, in the model's words; may be empty.
    pub label: String,
    /// Which picture of the prompt, counted from 0.
    pub picture: usize,
    /// Two points: the corners of a box, upper left and lower right. Four: a quadrangle. In pixels from the upper left
    /// corner of the picture as it is shown, that is, turned as its EXIF orientation says: `[0, 0]` to `[width, height]`.
    pub points: Vec<[f64; 2]>,
}

impl Region {
    /// The place in picture number `picture`, of which the model saw `view`.
    pub fn new(place: Place, picture: usize, view: &View) -> Region {
        let points = place.points.iter().map(|point| view.to_pixels(*point)).collect();
        Region { label: place.label, picture, points }
    }

    /// The smallest box around it: left, top, right, bottom.
    pub fn bounds(&self) -> [f64; 4] {
        let around = |[x1, y1, x2, y2]: [f64; 4], [x, y]: &[f64; 2]| [x1.min(*x), y1.min(*y), x2.max(*x), y2.max(*y)];
        let [inf, none] = [f64::INFINITY, f64::NEG_INFINITY];
        self.points.iter().fold([inf, inf, none, none], around)
    }

    /// `{"label", "picture", "x1", "y1", "x2", "y2"}` with whole pixels, pictures counted from 1; a quadrangle has its
    /// `"points"` as well. Pixel columns `x1..x2` and rows `y1..y2` are inside.
    pub fn json(&self) -> serde_json::Value {
        let whole = |v: f64| v.round() as i64;
        let [x1, y1, x2, y2] = self.bounds().map(whole);
        let mut json = serde_json::json!({
            "label": self.label, "picture": self.picture + 1, "x1": x1, "y1": y1, "x2": x2, "y2": y2,
        });
        if self.points.len() > 2 {
            json["points"] = self.points.iter().map(|point| point.map(whole).to_vec()).collect::<Vec<_>>().into();
        }
        json
    }
}
